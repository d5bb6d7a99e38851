"""The malloc settings are taken where the C library is glibc, and never raise."""

import platform
import subprocess
import sys

import pytest

from ser_lightning.memory import keep_freed_memory, return_freed_memory

IS_GLIBC = platform.libc_ver()[0] == "glibc"
PIECES = """
import torch
from pathlib import Path
from ser_lightning.memory import keep_freed_memory, return_freed_memory

def held():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) // 1024

keep_freed_memory()
pieces = [torch.ones(2**18 + 1000 * number) for number in range(200)]  # 1 MB and more each
kept = pieces[::20]
del pieces
before = held()
return_freed_memory()
print(before - held())
"""


def test_settings_are_taken_on_glibc():
    assert keep_freed_memory() == IS_GLIBC
    assert return_freed_memory() in ((True, False) if IS_GLIBC else (False,))


@pytest.mark.skipif(not IS_GLIBC, reason="the C library has no malloc_trim")
@pytest.mark.slow
def test_freed_memory_is_kept_and_given_back():
    command = [sys.executable, "-c", PIECES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150  # MB, of 270 that were freed
