"""Which weight files a part of a pipeline has, by their names alone: whole ones, variants, shards, pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable

# model.safetensors, diffusion_pytorch_model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, the older
# model-00001-of-00002.fp16.safetensors, and lists of shards: model.safetensors.index.fp16.json.
_SHARD = r"(?:-\d{5}-of-\d{5})?"
_WEIGHTS = re.compile(
    rf"(?:model|pytorch_model|diffusion_pytorch_model){_SHARD}(?:\.(?P<variant>[^.]+?))?{_SHARD}"
    r"\.(?P<kind>safetensors|bin)(?:\.index(?:\.(?P<listed>[^.]+))?\.json)?"
)


def variant_of(name: str) -> str | None:
    """The variant that a weight file belongs to; "" for a plain one, None for what is no safetensors of weights."""
    found = _WEIGHTS.fullmatch(name)
    return (found["variant"] or found["listed"] or "") if found and found["kind"] == "safetensors" else None


def variants(names: Iterable[str]) -> list[str]:
    """The variants among weight files, sorted."""
    return sorted({variant for name in names if (variant := variant_of(name))})


def has_plain(names: Iterable[str]) -> bool:
    """Whether there are weights that are read where no variant is asked for."""
    return any(variant_of(name) == "" for name in names)


def missing_weights(names: Iterable[str]) -> str:
    """What a part has in place of plain safetensors weights, what it should have, and what to do, in words.

    Args:
        names: of the files of its folder.
    """
    names = sorted(names)
    if there := variants(names):
        return (
            f"weights of the variant {' and '.join(there)} alone, expected the variant to be named: pass "
            f"variant={there[0]!r} (--variant {there[0]}, backbone.variant={there[0]})"
        )
    pickles = [name for name in names if (found := _WEIGHTS.fullmatch(name)) and found["kind"] == "bin"]
    if pickles:
        return (
            f"{pickles[0]} alone, expected safetensors, for pickles are never loaded: take a revision or a copy that "
            "has them, or write one with diffusers' save_pretrained"
        )
    return "no weights, expected safetensors: fetch them"
