"""Keeps freed memory in the process: a network's large activations are not given back and faulted in again.

With glibc that is 10 to 47 % of the time of a convolution network on the CPU (see docs/benchmarks.md). For programs
that truescale runs itself; a library must not change its host's allocator.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Names of mallopt's parameters in glibc's malloc.h."""

TOP_PAD_BYTES = 256 << 20


def keep() -> bool:
    """Keep the heap from now on; call it before large arrays are made. False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = (
        (M_MMAP_MAX, 0),
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_TOP_PAD, TOP_PAD_BYTES),
        (M_ARENA_MAX, 1),  # one heap: freed activations of one thread serve the others
    )
    set_to = [libc.mallopt(name, value) for name, value in settings]
    return all(done == 1 for done in set_to)


def trim(above_bytes: int = 0) -> None:
    """Give back what is free, if more than `above_bytes` are resident.

    Between the stages of a run, so that the largest counts and not their sum; between tiles only near the limit, for a
    kept heap fragments slowly and what is given back must be faulted in again.
    """
    if resident_bytes() > above_bytes and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory of this process that is resident; a huge number where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 62
