"""Whose fault a ``ValueError`` of a pipeline is: that of its caller, or of what it computes with."""

from __future__ import annotations

import inspect
import traceback
from typing import Any


def is_refusal(error: ValueError, pipe: Any) -> bool:
    """Whether a pipeline says so of the arguments of its call, and not a tokenizer, an encoder or a decoder of its own.

    Args:
        error: that its call raised.
        pipe: whose class checks arguments in ``check_inputs``, or in its call itself (Z-Image).
    """
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    call = inspect.unwrap(type(pipe).__call__).__code__
    return codes[-1] is call or any(code.co_name == "check_inputs" for code in codes)
