"""A batch size that is halved when memory is short."""

from __future__ import annotations

import logging

import torch

from tpdm.core.errors import TrainingError

logger = logging.getLogger(__name__)


class AdaptiveBatchSize:
    """Number of items that are computed at once. It is halved after each out-of-memory error.

    Items of a batch are independent, so that the size changes results only up to floating-point rounding.

    Args:
        size: Initial size, >= 1.
        key: Recipe key of the size.
        items: Plural noun of the items, for messages.

    Example:
        >>> batch_size = AdaptiveBatchSize(8, "rl.rollout_batch", "images")
        >>> batch_size.halve(tried=8)
        >>> batch_size.size
        4
    """

    def __init__(self, size: int, key: str, items: str) -> None:
        self.size, self.key, self.items = size, key, items

    def halve(self, tried: int) -> None:
        """Halves the size after an attempt that did not fit into memory, and logs a warning.

        Call it outside the ``except`` block, because the exception keeps the memory of the attempt.

        Args:
            tried: Items of the attempt, >= 1.

        Raises:
            TrainingError: The attempt had only one item.
        """
        if min(tried, self.size) <= 1:
            raise TrainingError(
                f"Memory is too small for {self.key}=1. At least one item must fit. Use smaller images "
                "(backbone.height and width), backbone.dtype=bf16, or a device with more memory."
            )
        self.size = min(tried, self.size) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "Out of memory with %d %s at once. The size is now %d. Set %s=%d to start with it.",
            tried,
            self.items,
            self.size,
            self.key,
            self.size,
        )
