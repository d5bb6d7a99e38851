"""`torch.compile` of the blocks of a ViT."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_MOST_VARIANTS = 256  # of one function; torch runs further ones without compiling them


@cache
def compiled(run: Callable) -> Callable:
    """A function of a block and its tokens, compiled for all blocks and lengths.

    Another number of groups of images compiles it anew, and so does another rate of dropped paths,
    of which every block has its own.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_VARIANTS)
    return torch.compile(run, dynamic=True)


def require_compiler(device: torch.device) -> None:
    """Compiles a trifle.

    Raises:
        ValueError: the machine has no compiler for the device.
    """

    def trifle(x: Any) -> Any:
        return x + 1

    try:
        torch.compile(trifle)(torch.zeros(2, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.compile true, but nothing can be compiled for {device} here ({reason}); "
            "install a C++ compiler for the CPU or Triton for a GPU, or leave model.compile out"
        ) from error
