"""Token limits of a pipeline's text encoders, and prompts that exceed them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import CLIPTokenizer

from tpdm.data.truncation import Truncation, count_truncated_prompts

_NO_LIMIT = 10**6  # tokenizers without a limit report 10**30


@dataclass(frozen=True)
class TokenLimit:
    """A text encoder with a token limit.

    Attributes:
        name: Description for messages.
        tokenizer: Its tokenizer.
        tokens: Maximum number of tokens of a prompt, including special tokens.
    """

    name: str
    tokenizer: Any
    tokens: int


def count_truncated(pipe: Any, arguments: Mapping[str, Any], prompts: Sequence[str]) -> list[Truncation]:
    """Counts the prompts that have more tokens than each text encoder of a pipeline reads.

    A template around the prompt (Qwen-Image) is not counted.

    Args:
        pipe: Diffusers pipeline. Its components named ``tokenizer...`` are used.
        arguments: Arguments of its call. ``max_sequence_length`` limits every encoder except CLIP.
        prompts: Prompts to count.
    """
    return [
        Truncation(limit.name, limit.tokens, count_truncated_prompts(limit.tokenizer, limit.tokens, prompts))
        for limit in token_limits(pipe, arguments)
    ]


def token_limits(pipe: Any, arguments: Mapping[str, Any]) -> list[TokenLimit]:
    """Returns the text encoders of a pipeline that have a token limit.

    Args:
        pipe: Diffusers pipeline.
        arguments: Arguments of its call, as for ``count_truncated``.
    """
    limited = []
    for name, tokenizer in pipe.components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        limits = [tokenizer.model_max_length]
        if not isinstance(tokenizer, CLIPTokenizer):
            limits.append(_max_sequence_length(pipe, arguments))
        tokens = min(limits)
        if tokens < _NO_LIMIT:
            limited.append(TokenLimit(f"{name} of the pipeline", tokenizer, tokens))
    return limited


def _max_sequence_length(pipe: Any, arguments: Mapping[str, Any]) -> int:
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    default = parameter.default if parameter is not None else None
    length = arguments.get("max_sequence_length", default)
    return length if isinstance(length, int) else _NO_LIMIT
