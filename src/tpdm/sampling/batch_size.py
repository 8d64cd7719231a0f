"""How many items are computed at once: as many as were asked for, until memory is short."""

from __future__ import annotations

import logging

import torch

from tpdm.core.errors import TrainingError

logger = logging.getLogger(__name__)


class AdaptiveBatchSize:
    """A number of items that is halved whenever memory runs out, and stays so.

    What comes of an item does not depend on the others of its portion, so that results stay but for rounding.

    Args:
        size: at first.
        key: of the recipe that says it.
        items: what they are, in the plural.
    """

    def __init__(self, size: int, key: str, items: str) -> None:
        self.size, self.key, self.items = size, key, items

    def halve(self, tried: int) -> None:
        """After an attempt with ``tried`` items; says so in the log.

        Call it when the error is no longer being handled: until then it holds the memory of the attempt.

        Raises:
            TrainingError: that was one alone.
        """
        if min(tried, self.size) <= 1:
            raise TrainingError(
                f"got too little memory for {self.key} = 1, expected it to fit; take smaller images (backbone.height "
                "and width), backbone.dtype=bf16, or a device with more memory"
            )
        self.size = min(tried, self.size) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory with %d %s at once: going on with %d; set %s=%d to begin with that",
            tried,
            self.items,
            self.size,
            self.key,
            self.size,
        )
