"""``Truncation``: prompts with more tokens than a text encoder or a reward reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Truncation:
    """Number of prompts that exceed a token limit.

    Attributes:
        reader: Description of the text encoder or reward.
        tokens: Maximum number of tokens of a prompt, including special tokens.
        prompts: Number of prompts that have more.
    """

    reader: str
    tokens: int
    prompts: int


def count_truncated_prompts(tokenizer: Any, tokens: int, prompts: Sequence[str]) -> int:
    """Returns the number of prompts for which a transformers tokenizer gives more than ``tokens`` tokens."""
    if not prompts:
        return 0
    ids = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
    return sum(len(row) > tokens for row in ids)


def warn_truncated(truncations: Sequence[Truncation], prompts: int) -> None:
    """Logs a warning for each text encoder or reward that truncates prompts.

    Args:
        truncations: Truncated prompts of each text encoder or reward.
        prompts: Number of all prompts.
    """
    for entry in truncations:
        if entry.prompts:
            logger.warning(
                "%d of %d prompts have more than the %d tokens that %s reads. Tokens beyond the limit are ignored.",
                entry.prompts,
                prompts,
                entry.tokens,
                entry.reader,
            )
