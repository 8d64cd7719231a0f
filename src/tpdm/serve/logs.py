"""What the log says of errors: enough to find them, and no word of a prompt."""

from __future__ import annotations

import logging
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
