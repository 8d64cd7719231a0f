"""What a pipeline does where its caller says nothing, from its configuration files alone."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from tpdm.pipelines.backbones import DENOISERS
from tpdm.pipelines.load import pipeline_folder
from tpdm.types import BackboneError


@dataclass(frozen=True)
class CallFacts:
    """What a call of a pipeline does where the caller says nothing, and what it cannot do.

    Attributes:
        steps: of its own schedule.
        largest_side: pixels, where the denoiser's table of positions ends; None where it has no end.
    """

    steps: int
    largest_side: int | None


def call_facts(name_or_path: str | Path) -> CallFacts:
    """The facts of "tinyworld", of a pipeline folder or of a Hub name, from its configuration files.

    Raises:
        BackboneError: there is no such pipeline.
    """
    import diffusers

    place = pipeline_folder(name_or_path)
    try:
        index = diffusers.DiffusionPipeline.load_config(place)
        cls = getattr(diffusers, index["_class_name"])
        present = [name for name in (*DENOISERS, "vae") if index.get(name, [None])[0] is not None]
        configs = [getattr(diffusers, index[name][1]).load_config(place, subfolder=name) for name in present]
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"got {str(name_or_path)!r}, whose configuration cannot be used, expected 'tinyworld', a pipeline "
            f"folder or a Hub name 'owner/model': {reason}"
        ) from error
    known = {key: value for config in configs for key, value in config.items()}
    positions, blocks = known.get("pos_embed_max_size"), known.get("block_out_channels")
    # Each block of the autoencoder but the last halves the picture.
    largest = positions * known["patch_size"] * 2 ** (len(blocks) - 1) if positions and blocks else None
    return CallFacts(int(inspect.signature(cls.__call__).parameters["num_inference_steps"].default), largest)
