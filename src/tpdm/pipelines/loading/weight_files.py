"""The files of a pipeline: fetched from the Hub, and which weight files a part of it has, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tpdm.core.errors import BackboneError
from tpdm.core.file_errors import first_line
from tpdm.pipelines.loading.model_index import PipelineIndex

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


def local_folder(index: PipelineIndex, left_out: Iterable[str], variant: str | None) -> Path:
    """The folder of a pipeline, fetched from the Hub where it is not here, without what is left out.

    Raises:
        BackboneError: it cannot be fetched, or has no such variant.
    """
    import diffusers

    folder = Path(index.place)
    if not folder.is_dir():
        try:
            fetched = diffusers.DiffusionPipeline.download(
                index.place, use_safetensors=True, variant=variant, **dict.fromkeys(left_out)
            )
        except Exception as error:  # the hub raises a dozen unrelated types: its own, httpx's, OSError, ValueError
            raise BackboneError(_said_of_hub(index, variant, error)) from error
        folder = Path(fetched)
    there = variants(path.name for name in index.parts for path in (folder / name).glob("*.safetensors"))
    if variant is not None and variant not in there:
        raise BackboneError(no_such_variant(index.place, variant, there))
    return folder


def no_such_variant(place: str | Path, variant: str, there: list[str]) -> str:
    """The sentence on a variant that is not among those that are there."""
    return (
        f"got variant {variant!r} for {str(place)!r}, expected "
        f"{'one of ' + ', '.join(there) if there else 'none, for it has no variants'}: correct it or leave it out."
    )


def _said_of_hub(index: PipelineIndex, variant: str | None, error: Exception) -> str:
    """Why a pipeline cannot be fetched: by the names of its files, where the Hub tells them."""
    from huggingface_hub import HfApi

    try:
        files = [name.split("/") for name in HfApi().list_repo_files(str(index.place))]
    except Exception:  # out of reach: the first error says so
        files = []
    weights = {part: [path[1] for path in files if len(path) == 2 and path[0] == part] for part in index.parts}
    there = variants(name for names in weights.values() for name in names)
    if variant is not None and files and variant not in there:
        return no_such_variant(index.place, variant, there)
    for part, names in weights.items():
        if "config.json" in names and variant is None and not has_plain(names):
            return f"got {part} of {str(index.place)!r} with {missing_weights(names)}."
    return (
        f"got {str(index.place)!r}, which cannot be fetched from the Hub ({first_line(error)}), expected a pipeline "
        "with safetensors weights: check the name and the network."
    )
