"""A pipeline's folder on this machine, fetched from the Hub where it is not here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tpdm.core.errors import BackboneError
from tpdm.core.file_errors import first_line
from tpdm.pipelines.loading.model_index import PipelineIndex
from tpdm.pipelines.loading.weight_files import has_plain, missing_weights, variants


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
