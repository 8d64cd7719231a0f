"""Prompts that whoever reads them does not read to their end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Truncation:
    """Prompts that are read in part.

    Attributes:
        reader: who reads them, in words.
        tokens: read of each prompt, special tokens included.
        prompts: how many have more.
    """

    reader: str
    tokens: int
    prompts: int


def count_over_long(tokenizer: Any, tokens: int, prompts: Sequence[str]) -> int:
    """How many prompts a transformers tokenizer turns into more than ``tokens`` tokens."""
    if not prompts:
        return 0
    ids = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
    return sum(len(row) > tokens for row in ids)


def tell(readers: Sequence[Truncation], prompts: int) -> None:
    """A warning in the log for each reader that does not read some of so many prompts to their end."""
    for reader in readers:
        if reader.prompts:
            logger.warning(
                "%d of %d prompts have more than the %d tokens that %s reads; the rest of them is not seen",
                reader.prompts,
                prompts,
                reader.tokens,
                reader.reader,
            )
