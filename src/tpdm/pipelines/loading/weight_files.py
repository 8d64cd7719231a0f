"""Files of a pipeline: downloads from the Hub, and the kinds of weight files by their names."""

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
    """Returns the variant of a weight file. It is "" for a plain one, and None for a file without safetensors weights.

    Example:
        >>> variant_of("model.fp16.safetensors"), variant_of("model.safetensors"), variant_of("config.json")
        ('fp16', '', None)
    """
    match = _WEIGHTS.fullmatch(name)
    return (match["variant"] or match["listed"] or "") if match and match["kind"] == "safetensors" else None


def variants(names: Iterable[str]) -> list[str]:
    """Returns the variants among weight files, sorted."""
    return sorted({variant for name in names if (variant := variant_of(name))})


def has_plain(names: Iterable[str]) -> bool:
    """Whether there are plain weights, which are read without a variant."""
    return any(variant_of(name) == "" for name in names)


def missing_weights(names: Iterable[str]) -> str:
    """Describes what a part has instead of plain safetensors weights, and what to do. It completes "PART has ...".

    Args:
        names: Names of the files in the part's folder.
    """
    names = sorted(names)
    if available := variants(names):
        first = available[0]
        return (
            f"only weights of the variant {' and '.join(available)}. A variant must be named. Pass variant={first!r} "
            f"(--variant {first}, backbone.variant={first})."
        )
    pickles = [name for name in names if (match := _WEIGHTS.fullmatch(name)) and match["kind"] == "bin"]
    if pickles:
        return (
            f"only {pickles[0]}. Weights must be safetensors, because pickles are never loaded. Use a revision or a "
            "copy that has them, or write one with save_pretrained of diffusers."
        )
    return "no weights. Weights must be safetensors. Fetch them."


def local_folder(index: PipelineIndex, left_out: Iterable[str], variant: str | None) -> Path:
    """Returns the folder of a pipeline, after a download from the Hub if it is not a folder.

    Args:
        index: Index of the pipeline.
        left_out: Names of parts that are not downloaded.
        variant: Variant of the weight files. None uses the plain ones.

    Raises:
        BackboneError: The download fails, or there is no such variant.
    """
    import diffusers

    folder = Path(index.place)
    if not folder.is_dir():
        try:
            fetched = diffusers.DiffusionPipeline.download(
                index.place, use_safetensors=True, variant=variant, **dict.fromkeys(left_out)
            )
        except Exception as error:  # the hub raises a dozen unrelated types: its own, httpx's, OSError, ValueError
            raise BackboneError(_explain_download(index, variant, error)) from error
        folder = Path(fetched)
    available = variants(path.name for name in index.parts for path in (folder / name).glob("*.safetensors"))
    if variant is not None and variant not in available:
        raise BackboneError(no_such_variant(index.place, variant, available))
    return folder


def no_such_variant(place: str | Path, variant: str, available: list[str]) -> str:
    """Returns the error for a variant that a pipeline does not have."""
    allowed = f"It must be one of {', '.join(available)}" if available else "This pipeline has no variants"
    return f"variant is {variant!r} for {str(place)!r}. {allowed}. Correct it or leave it out."


def _explain_download(index: PipelineIndex, variant: str | None, error: Exception) -> str:
    """Explains why a download failed, from the names of the files if the Hub lists them."""
    from huggingface_hub import HfApi

    try:
        files = [name.split("/") for name in HfApi().list_repo_files(str(index.place))]
    except Exception:  # the Hub cannot be reached, as the first error says
        files = []
    weights = {part: [path[1] for path in files if len(path) == 2 and path[0] == part] for part in index.parts}
    available = variants(name for names in weights.values() for name in names)
    if variant is not None and files and variant not in available:
        return no_such_variant(index.place, variant, available)
    for part, names in weights.items():
        if "config.json" in names and variant is None and not has_plain(names):
            return f"{part} of {str(index.place)!r} has {missing_weights(names)}"
    return (
        f"{str(index.place)!r} cannot be downloaded from the Hub ({first_line(error)}). It must be a pipeline with "
        "safetensors weights. Check the name and the network connection."
    )
