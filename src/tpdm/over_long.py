"""Prompts that whoever reads them does not read to their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OverLong:
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
