"""What a failed attempt holds in memory, and how it is let go before the next."""

from __future__ import annotations

import traceback

import torch


def let_go(error: BaseException) -> None:
    """Frees what the frames of an error hold: the activations of a network, most of all. Where they stood stays.

    Call it when the error is no longer being handled: the frame that handles it cannot be freed.

    Args:
        error: and with it what it was raised from; out of memory empties the cache of the device too.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        torch.cuda.empty_cache()
