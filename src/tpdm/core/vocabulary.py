"""Checks of a tokenizer's vocabulary. If its files are missing, transformers creates an empty tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Every tokenizer with letters or words gives them different tokens.
_TEXTS = ("a red circle", "two blue squares at the top")


def vocabulary_fault(tokenizer: Any, vocabulary: int | None) -> str | None:
    """Check whether a tokenizer belongs to its model.

    Args:
        tokenizer: Tokenizer of transformers.
        vocabulary: Number of tokens of its model. None if it is unknown.

    Returns:
        A clause that says what is wrong, or None.
    """
    if vocabulary is None:
        first, second = (set(tokenizer(text, add_special_tokens=False).input_ids) for text in _TEXTS)
        return None if first != second else "gives different texts the same tokens"
    # Some models have a few tokens more than their tokenizer (BLIP), or round their vocabulary up.
    if 0.9 * vocabulary < len(tokenizer) <= vocabulary:
        return None
    return f"has {len(tokenizer)} tokens where its model knows {vocabulary}"


def vocabulary_files(names: Mapping[str, str]) -> str:
    """Name the files that contain a vocabulary.

    Args:
        names: ``vocab_files_names`` of the tokenizer's class: files of the fast tokenizer and of the slow one.

    Example:
        >>> vocabulary_files({"tokenizer_file": "tokenizer.json", "vocab_file": "vocab.json"})
        'tokenizer.json, or vocab.json'
    """
    fast = names.get("tokenizer_file")
    slow = sorted(name for kind, name in names.items() if kind != "tokenizer_file")
    return ", or ".join(part for part in (fast, " and ".join(slow)) if part)
