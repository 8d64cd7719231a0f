"""Settings of the server process: error logging without prompts, and a limit on malloc arenas."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import traceback

LIBRARIES = ("diffusers", "transformers")


def describe(error: BaseException, with_message: bool = False) -> str:
    """Returns the types and frames of an exception and its causes, for the log.

    Args:
        error: The exception.
        with_message: Whether to add the messages, which may quote a prompt.
    """
    parts: list[str] = []
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        message = f": {current}" if with_message else ""
        parts.append(f"{type(current).__name__}{message}\n{''.join(traceback.format_tb(current.__traceback__))}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "caused by ".join(parts)


def quiet_libraries() -> None:
    """Sets the loggers of diffusers and transformers to ERROR: their warnings quote the truncated part of prompts."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


ARENAS = 2

M_ARENA_MAX = -8  # of glibc's malloc.h

VARIABLE = "MALLOC_ARENA_MAX"


def limit_malloc_arenas() -> bool:
    """Makes all threads of this process share two malloc arenas of glibc.

    By default glibc uses up to eight arenas per core, and memory that is freed in one arena is not used by the others.
    With a thread per image, the resident memory grows for thousands of images
    (docs/decisions/0053-two-malloc-arenas.md). The large tensors are allocated by few threads at a time, so threads do
    not wait for an arena. Call the function before threads start. The environment variable ``MALLOC_ARENA_MAX`` takes
    precedence.

    Returns:
        Whether the limit was set. False with another C library, or if the environment variable is set.
    """
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS))
