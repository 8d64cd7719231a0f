"""A real ``CLIPTokenizer`` whose vocabulary is tinyworld's: every word of the grammar is one token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from tpdm.core.io import write_text
from tpdm.tinyworld.grammar import WORDS

MAX_TOKENS = 32
_START, _END = "<|startoftext|>", "<|endoftext|>"


def _byte_symbols() -> list[str]:
    """The printable symbols of byte-level BPE, in the order of their bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@lru_cache(maxsize=1)
def _merges() -> list[tuple[str, str]]:
    """Byte-pair merges in order, added until every word of the grammar is one token.

    Each merge is applied to all words at once, as in training a BPE. Otherwise a word that starts with another word
    ("southeast") would be cut where the other word's merges come first.
    """
    segmented = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    merges: list[tuple[str, str]] = []
    while unfinished := next((pieces for pieces in segmented if len(pieces) > 1), None):
        pair = (unfinished[0], unfinished[1])
        merges.append(pair)
        segmented = [_apply(pair, pieces) for pieces in segmented]
    return merges


def _apply(pair: tuple[str, str], pieces: list[str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Return the vocabulary, token -> id: bytes, bytes that end a word, merged pieces, start and end."""
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in _merges()), _START, _END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def make_tokenizer() -> CLIPTokenizer:
    """Create the tokenizer. Captions of up to 30 words fit its 32 tokens.

    Example:
        >>> make_tokenizer()("red circle").input_ids == encode_words(["red circle"])[0, :4].tolist()
        True
    """
    with TemporaryDirectory() as folder:  # the way that works with transformers 4 and 5
        write_vocabulary(Path(folder))
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
    return tokenizer


def write_vocabulary(folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, which transformers 4 reads. transformers 5 saves ``tokenizer.json``."""
    write_text(folder / "vocab.json", json.dumps(vocabulary()))
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in _merges()))


def start_id() -> int:
    """Return the id of the token that starts every caption."""
    return vocabulary()[_START]


def end_id() -> int:
    """Return the id of the token that ends and pads every caption."""
    return vocabulary()[_END]


def encode_words(captions: Sequence[str]) -> Tensor:
    """Return the token ids (B, 32) of captions, as the tokenizer does but faster. All words must be the grammar's."""
    table = vocabulary()
    ids = torch.full((len(captions), MAX_TOKENS), end_id(), dtype=torch.int64, device="cpu")
    for row, caption in enumerate(captions):
        words = [start_id(), *(table[w + "</w>"] for w in caption.split())]
        ids[row, : len(words)] = torch.tensor(words, dtype=torch.int64, device="cpu")
    return ids
