"""What a pipeline does where its caller says nothing, from its configuration files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.pipelines.loading.components import meta_component, part_config
from tpdm.pipelines.loading.load import pipeline_folder
from tpdm.pipelines.loading.model_index import read_index
from tpdm.pipelines.registry import DENOISER_ATTRIBUTES, find_entry, token_width


@dataclass(frozen=True)
class PipelineMetadata:
    """What a call of a pipeline does where the caller says nothing, and what it cannot do.

    Attributes:
        steps: of its own schedule.
        largest_side: pixels, where the denoiser's table of positions ends; None where it has no end.
    """

    steps: int
    largest_side: int | None


def read_pipeline_metadata(name_or_path: str | Path) -> PipelineMetadata:
    """The facts of "tinyworld", of a pipeline folder or of a Hub name, from its configuration files.

    Raises:
        BackboneError: there is no such pipeline, a configuration file of it is missing or damaged, or the installed
            diffusers lacks a class of it.
    """
    index = read_index(pipeline_folder(name_or_path), name_or_path)
    present = [name for name in (*DENOISER_ATTRIBUTES, "vae") if name in index.parts]
    configs = [part_config(index, name) for name in present]
    known = {key: value for config in configs for key, value in config.items()}
    positions, blocks = known.get("pos_embed_max_size"), known.get("block_out_channels")
    # Each block of the autoencoder but the last halves the picture.
    largest = positions * known["patch_size"] * 2 ** (len(blocks) - 1) if positions and blocks else None
    return PipelineMetadata(index.default_steps(), largest)


@dataclass(frozen=True)
class PipelineSizes:
    """What a plan needs to know of a pipeline.

    Attributes:
        networks: by their names in the pipeline, with shapes and without numbers.
        denoiser: name of the one that is the denoiser.
        feature_channels: width of the tokens that leave its last block.
        temb_channels: width of its time embedder, which is nearly always that of the embedding.
    """

    networks: dict[str, nn.Module]
    denoiser: str
    feature_channels: int
    temb_channels: int

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each network."""
        return {name: sum(p.numel() for p in n.parameters()) for name, n in self.networks.items()}


def pipeline_sizes(name_or_path: str | Path) -> PipelineSizes:
    """Sizes of "tinyworld", of a pipeline folder, or of a Hub name (whose small configuration files are fetched).

    Raises:
        BackboneError: there is no such pipeline, or no denoiser in it that tpdm knows.
    """
    networks = meta_networks(name_or_path)
    denoiser = next((name for name in DENOISER_ATTRIBUTES if name in networks), None)
    if denoiser is None:
        raise BackboneError(
            f"got the parts {', '.join(networks) or 'none'} in {str(name_or_path)!r}, expected one called "
            f"{' or '.join(DENOISER_ATTRIBUTES)}: give a text-to-image pipeline."
        )
    network = networks[denoiser]
    entry = find_entry(network)
    temb = network.get_submodule(entry.temb)
    return PipelineSizes(
        networks=networks,
        denoiser=denoiser,
        feature_channels=token_width(network),
        temb_channels=next(m.out_features for m in temb.modules() if isinstance(m, nn.Linear)),
    )


def meta_networks(name_or_path: str | Path) -> dict[str, nn.Module]:
    """Every network of a pipeline on the meta device, by its name there.

    Raises:
        BackboneError: there is no such pipeline, or the installed libraries lack a class of it.
    """
    index = read_index(pipeline_folder(name_or_path), name_or_path)
    networks = {name: meta_component(index, name) for name in index.parts}
    return {name: network for name, network in networks.items() if network is not None}
