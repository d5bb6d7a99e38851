"""What glibc does with freed memory: kept for the next step, and now and then given back."""

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of its mallopt
_LARGEST = 2**31 - 1
_PAD = 2**28


def keep_freed_memory() -> bool:
    """Stops glibc from returning every large buffer to the kernel, which would clear it anew.

    Returns:
        Whether the C library took the settings; elsewhere than on glibc nothing happens.
    """
    mallopt = _function("mallopt")
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PAD))
    return mallopt is not None and all([mallopt(name, value) for name, value in settings])


def return_freed_memory() -> bool:
    """Returns what is free at this moment, between pieces in use too.

    Where sizes change from step to step, as views of many sizes have them, what is kept would grow
    without end.

    Returns:
        Whether there was something, and a C library that can.
    """
    trim = _function("malloc_trim")
    return trim is not None and bool(trim(0))


def _function(name: str) -> Any:
    """A function of the C library; None elsewhere than on Linux, or where it has none."""
    is_linux = sys.platform.startswith("linux")
    return getattr(ctypes.CDLL(None), name, None) if is_linux else None
