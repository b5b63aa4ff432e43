"""How the C library hands out memory while a network trains."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc, https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocation, and return whether the C library can.

    By default glibc maps every large block anew and gives it back when it is freed. Each step of training then
    waits for the kernel to clear the same gigabytes again: more than half of the time of a 224-pixel step of
    EfficientNet-Lite0 were spent so on one machine. The process stays as large as its largest step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, _LARGEST))
