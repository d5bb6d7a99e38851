"""Keeps freed memory in the process: a CPU step reuses the same large buffers again and again."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of glibc's mallopt
_LARGEST = 2**31 - 1
_PAD = 2**28


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
