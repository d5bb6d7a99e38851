"""`torch.compile` of the blocks of a ViT."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled(run: Callable) -> Callable:
    """A function of a block and its tokens, compiled once for all blocks and lengths.

    Another number of groups of images compiles it anew.
    """
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
