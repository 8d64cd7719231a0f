"""How much of a prompt a pipeline's text encoders read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CLIPTokenizer

from tpdm.over_long import OverLong, count_over_long

_NO_LIMIT = 10**6  # tokenizers that know of no limit say 10**30


def over_long(pipe: Any, arguments: Mapping[str, Any], prompts: Sequence[str]) -> list[OverLong]:
    """How many prompts have more tokens than each text encoder of a pipeline reads.

    Words that a pipeline puts around the prompt (Qwen-Image's template) are not counted.

    Args:
        pipe: a diffusers pipeline; its components called ``tokenizer...`` are asked.
        arguments: of its call; ``max_sequence_length`` caps every encoder but CLIP, whose cap is its own.
        prompts: to be read.
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
            found.append(OverLong(f"{name} of the pipeline", tokens, count_over_long(tokenizer, tokens, prompts)))
    return found


def _max_sequence_length(pipe: Any, arguments: Mapping[str, Any]) -> int:
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    default = parameter.default if parameter is not None else None
    length = arguments.get("max_sequence_length", default)
    return length if isinstance(length, int) else _NO_LIMIT
