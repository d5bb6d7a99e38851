"""How a command starts: what is set before it, and how a mistake ends it."""

import ctypes
import logging
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path

import lightning
import torch
import torch.utils.data
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

_CHECKERS = [
    Path(__file__).parents[1],
    Path(lightning.__file__).parent,
    Path(torch.utils.data.__file__).parent,
]
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of glibc's mallopt
_LARGEST = 2**31 - 1
_PAD = 2**28
_NOISE = ("litlogger", "litmodels", "`weights_only` was not set")


def run(module: str, function: str, args: list[str]) -> None:
    """Runs a command; mistakes of the user end in a short message and status 1.

    Args:
        module: import path of the command's module.
        function: name of the function that takes the arguments.
        args: the arguments, without the command itself.
    """
    _quieten()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    try:
        getattr(import_module(module), function)(args)
    except KeyboardInterrupt:
        print("ser-fit: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        found = _mistake(error)
        if found is None:
            raise
        sys.exit(f"ser-fit: error: {_message(found)}")


def _mistake(error: BaseException | None) -> BaseException | None:
    """What the user can mend, perhaps wrapped by a library; None for a bug."""
    while error is not None:
        if isinstance(error, (MisconfigurationException, OSError, yaml.YAMLError)):
            return error  # settings and files, whoever found it
        if type(error).__module__.startswith("ser_lightning."):
            return error
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and frames and _checks_settings(frames[-1].filename):
            return error
        error = error.__cause__ or error.__context__
    return None


def _checks_settings(file: str) -> bool:
    """Whether a value that a file complains about is likely the user's."""
    return any(Path(file).is_relative_to(folder) for folder in _CHECKERS)


def _message(error: BaseException) -> str:
    """The error's own words; an error in a loader's worker puts a traceback before them."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1] if "Traceback (most recent" in text else text


class _DropMessages(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(part in record.getMessage() for part in _NOISE)


def _quieten() -> None:
    """Drops three messages that say nothing about the run."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(_DropMessages())


def keep_freed_memory() -> bool:
    """Stops glibc from returning every large buffer to the kernel, which would clear it anew.

    Returns:
        Whether the C library took the settings; elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PAD))
    return all([mallopt(name, value) for name, value in settings])
