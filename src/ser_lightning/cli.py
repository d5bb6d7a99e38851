"""The command line: `ser-fit fit | validate | test`, and `compare` of finished runs.

Links what must agree (image and patch size, seed, global batch size), derives every path from
one run folder, and checks what no single room can see.
"""

import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ser_lightning.commands.compare import compare
from ser_lightning.commands.evaluate import evaluate
from ser_lightning.commands.evaluate_all import evaluate_all
from ser_lightning.commands.fit import SERCommandLine
from ser_lightning.data import UnreadableImage
from ser_lightning.objectives import NonFiniteLossError
from ser_lightning.reporting.report import main as report
from ser_lightning.runtime import (
    keep_freed_memory,
)


def main(args: list[str] | None = None) -> None:
    """The entry point of ser-fit."""
    args = sys.argv[1:] if args is None else args
    commands = {
        "compare": compare,
        "evaluate": evaluate,
        "evaluate-all": evaluate_all,
        "report": report,
    }
    if args and args[0] in commands:
        run(commands[args[0]], args[1:])
    else:
        run(SERCommandLine, args)


def run(command_line: Callable[[list[str]], Any], args: list[str]) -> None:
    """Runs a command line; mistakes of the user end in a short message and status 1."""
    _quieten()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    try:
        command_line(args)
    except UnreadableImage as error:  # behind a worker's traceback, if a worker found it
        sys.exit(f"ser-fit: error: {str(error).strip().splitlines()[-1]}")
    except (ValueError, FileNotFoundError, NonFiniteLossError) as error:
        found = _found_here(error)
        if found is None:
            raise
        sys.exit(f"ser-fit: error: {found}")


def _found_here(error: BaseException | None) -> BaseException | None:
    """The mistake that this package found, perhaps wrapped by a library; None for a bug."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
            return error
        error = error.__cause__ or error.__context__
    return None


class _DropMessages(logging.Filter):
    _PARTS = ("litlogger", "litmodels", "`weights_only` was not set")

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(part in record.getMessage() for part in self._PARTS)


def _quieten() -> None:
    """Drops three messages that say nothing about the run."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(_DropMessages())


if __name__ == "__main__":
    main()
