"""What a pipeline does where its caller says nothing, from its configuration files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpdm.pipelines.backbones import DENOISERS
from tpdm.pipelines.components import part_config
from tpdm.pipelines.index import read_index
from tpdm.pipelines.load import pipeline_folder


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
        BackboneError: there is no such pipeline, a configuration file of it is missing or damaged, or the installed
            diffusers lacks a class of it.
    """
    index = read_index(pipeline_folder(name_or_path), name_or_path)
    present = [name for name in (*DENOISERS, "vae") if name in index.parts]
    configs = [part_config(index, name) for name in present]
    known = {key: value for config in configs for key, value in config.items()}
    positions, blocks = known.get("pos_embed_max_size"), known.get("block_out_channels")
    # Each block of the autoencoder but the last halves the picture.
    largest = positions * known["patch_size"] * 2 ** (len(blocks) - 1) if positions and blocks else None
    return CallFacts(index.default_steps(), largest)
