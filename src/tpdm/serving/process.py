"""What the log says of errors: enough to find them, and no word of a prompt."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import traceback

LIBRARIES = ("diffusers", "transformers")


def describe(error: BaseException, with_message: bool = False) -> str:
    """An exception and those that led to it; their messages may quote a prompt, their types and frames do not."""
    parts: list[str] = []
    seen: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in seen:
        seen.append(here)
        words = f": {here}" if with_message else ""
        parts.append(f"{type(here).__name__}{words}\n{''.join(traceback.format_tb(here.__traceback__))}")
        here = here.__cause__ or (None if here.__suppress_context__ else here.__context__)
    return "which came of ".join(parts)


def quiet_libraries() -> None:
    """Lets libraries that are loaded log errors only: of a prompt that is too long they quote what they cut off."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


ARENAS = 2

M_ARENA_MAX = -8  # of glibc's malloc.h

VARIABLE = "MALLOC_ARENA_MAX"


def limit_malloc_arenas() -> bool:
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
