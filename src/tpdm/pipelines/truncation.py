"""How much of a prompt a pipeline's text encoders read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import CLIPTokenizer

from tpdm.data.truncation import Truncation, count_over_long

_NO_LIMIT = 10**6  # tokenizers that know of no limit say 10**30


@dataclass(frozen=True)
class Reader:
    """A text encoder with an end.

    Attributes:
        name: in words.
        tokenizer: its own.
        tokens: that it reads of each prompt, special ones included.
    """

    name: str
    tokenizer: Any
    tokens: int


def over_long(pipe: Any, arguments: Mapping[str, Any], prompts: Sequence[str]) -> list[Truncation]:
    """How many prompts have more tokens than each text encoder of a pipeline reads.

    Words that a pipeline puts around the prompt (Qwen-Image's template) are not counted.

    Args:
        pipe: a diffusers pipeline; its components called ``tokenizer...`` are asked.
        arguments: of its call; ``max_sequence_length`` caps every encoder but CLIP, whose cap is its own.
        prompts: to be read.
    """
    return [
        Truncation(reader.name, reader.tokens, count_over_long(reader.tokenizer, reader.tokens, prompts))
        for reader in readers(pipe, arguments)
    ]


def readers(pipe: Any, arguments: Mapping[str, Any]) -> list[Reader]:
    """The text encoders of a pipeline that do not read every prompt to its end.

    Args:
        pipe: as ``over_long`` takes it.
        arguments: as ``over_long`` takes them.
    """
    found = []
    for name, tokenizer in pipe.components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        limits = [tokenizer.model_max_length]
        if not isinstance(tokenizer, CLIPTokenizer):
            limits.append(_max_sequence_length(pipe, arguments))
        tokens = min(limits)
        if tokens < _NO_LIMIT:
            found.append(Reader(f"{name} of the pipeline", tokenizer, tokens))
    return found


def _max_sequence_length(pipe: Any, arguments: Mapping[str, Any]) -> int:
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    default = parameter.default if parameter is not None else None
    length = arguments.get("max_sequence_length", default)
    return length if isinstance(length, int) else _NO_LIMIT
