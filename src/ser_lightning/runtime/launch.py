"""How a command starts: what is set before it, and how a mistake ends it."""

import ctypes
import logging
import os
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path

import lightning as L
import torch
import torch.utils.data
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator

from ser_lightning.processes import follow_launcher
from ser_lightning.runtime.configuration import with_home_folder

_CHECK_SETTINGS = [  # folders whose complaints about a value are likely about the user's
    Path(__file__).parents[1],
    Path(L.__file__).parent,
    Path(torch.utils.data.__file__).parent,
]
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of glibc's mallopt
_LARGEST = 2**31 - 1
_PAD = 2**28
_NOISE = ("litlogger", "litmodels", "`weights_only` was not set")


def run(module: str, function: str, args: list[str]) -> None:
    """Runs a command's function of its arguments; mistakes of the user end in a short message."""
    follow_launcher()
    _quieten()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    try:
        getattr(import_module(module), function)([with_home_folder(a) for a in args])
    except KeyboardInterrupt:
        print("ser-fit: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        found = _mistake(error)
        if found is None:
            raise
        sys.exit(f"ser-fit: error: {_message(found)}")


def refuse_more_processes_than_cores(trainer: L.Trainer) -> None:
    """Refuses processes that would only wait for each other; two may share a core, for a test."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(cores or 1, 2):
        raise ValueError(
            f"trainer.devices {trainer.num_devices} would start as many processes on a CPU of "
            f"{cores} cores; use at most {cores}, best 1: a process uses all cores by itself"
        )


def _mistake(error: BaseException | None) -> BaseException | None:
    """What the user can mend, perhaps wrapped by a library; None for a bug."""
    while error is not None:
        if isinstance(error, (MisconfigurationException, OSError, yaml.YAMLError)):
            return error  # settings and files, whoever found it
        if type(error).__module__.startswith("ser_lightning."):
            return error
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and frames:
            file = Path(frames[-1].filename)
            if any(file.is_relative_to(folder) for folder in _CHECK_SETTINGS):
                return error
        error = error.__cause__ or error.__context__
    return None


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
    is_linux = sys.platform.startswith("linux")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if is_linux else None
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PAD))
    return all([mallopt(name, value) for name, value in settings])
