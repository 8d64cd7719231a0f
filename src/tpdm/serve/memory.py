"""Memory of a process that makes every image in a thread of its own."""

from __future__ import annotations

import ctypes
import os
import platform

ARENAS = 2
M_ARENA_MAX = -8  # of glibc's malloc.h
VARIABLE = "MALLOC_ARENA_MAX"


def few_arenas() -> bool:
    """Lets all threads of this process share two of glibc's arenas.

    By default glibc gives threads up to eight arenas per core, and what is freed in one is not used by the others: with
    a thread per image the resident memory grows for thousands of images, far beyond what is in use (decision 53). The
    tensors that count are made under the engine's turns, so that nobody waits for an arena. Call it before threads
    start; ``MALLOC_ARENA_MAX`` in the environment has the last word.

    Returns:
        Whether something was set: not with another C library, nor where the environment says how many.
    """
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS))
