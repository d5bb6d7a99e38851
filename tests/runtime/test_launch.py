"""The malloc settings are taken where the C library is glibc, and never raise."""

import platform

from ser_lightning.runtime.launch import keep_freed_memory


def test_settings_are_taken_on_glibc():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
