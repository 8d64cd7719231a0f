"""Whether a tokenizer was made from its files: where they are missing, transformers makes an empty one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Different to every tokenizer that knows letters or words.
_TEXTS = ("a red circle", "two blue squares at the top")


def vocabulary_fault(tokenizer: Any, vocabulary: int | None) -> str | None:
    """What shows that a tokenizer is not that of its model, in words; None where nothing does.

    Args:
        tokenizer: of transformers.
        vocabulary: tokens that its model knows; None where that is not known.
    """
    if vocabulary is None:
        first, second = (set(tokenizer(text, add_special_tokens=False).input_ids) for text in _TEXTS)
        return None if first != second else "tells no two texts apart"
    # Some models know a few tokens more than their tokenizer has (BLIP), or round their vocabulary up.
    if 0.9 * vocabulary < len(tokenizer) <= vocabulary:
        return None
    return f"has {len(tokenizer)} tokens where its model knows {vocabulary}"


def vocabulary_files(names: Mapping[str, str]) -> str:
    """The files that hold a vocabulary, in words: "tokenizer.json, or merges.txt and vocab.json".

    Args:
        names: ``vocab_files_names`` of the tokenizer's class: one file that says all of it, and those of the slow one.
    """
    whole = names.get("tokenizer_file")
    parts = sorted(name for kind, name in names.items() if kind != "tokenizer_file")
    return ", or ".join(words for words in (whole, " and ".join(parts)) if words)
