"""Defaults and sizes of a pipeline, read from its configuration files without loading weights."""

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
    """Defaults and limits of a pipeline's calls.

    Attributes:
        steps: Default number of steps of the stock schedule.
        largest_side: Largest image side in pixels that the denoiser's position table covers. None without a limit.
    """

    steps: int
    largest_side: int | None


def read_pipeline_metadata(name_or_path: str | Path) -> PipelineMetadata:
    """Reads the metadata of "tinyworld", of a pipeline folder or of a Hub repository.

    Raises:
        BackboneError: The pipeline does not exist, a configuration file is missing or damaged, or the installed
            diffusers lacks one of its classes.

    Example:
        >>> read_pipeline_metadata("tinyworld").steps
        28
    """
    index = read_index(pipeline_folder(name_or_path), name_or_path)
    present = [name for name in (*DENOISER_ATTRIBUTES, "vae") if name in index.parts]
    configs = [part_config(index, name) for name in present]
    known = {key: value for config in configs for key, value in config.items()}
    positions, blocks = known.get("pos_embed_max_size"), known.get("block_out_channels")
    # Each block of the autoencoder except the last one halves the image.
    largest = positions * known["patch_size"] * 2 ** (len(blocks) - 1) if positions and blocks else None
    return PipelineMetadata(index.default_steps(), largest)


@dataclass(frozen=True)
class PipelineSizes:
    """Sizes of a pipeline for a training plan.

    Attributes:
        networks: Networks by their names in the pipeline, on the meta device.
        denoiser: Name of the denoiser.
        feature_channels: Width of the tokens that leave its last block.
        temb_channels: Width of its time embedder, which nearly always is the width of the embedding.
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
    """Reads the sizes of "tinyworld", of a pipeline folder, or of a Hub repository (only small files are fetched).

    Raises:
        BackboneError: The pipeline does not exist, or tpdm does not know its denoiser.
    """
    networks = meta_networks(name_or_path)
    denoiser = next((name for name in DENOISER_ATTRIBUTES if name in networks), None)
    if denoiser is None:
        raise BackboneError(
            f"{str(name_or_path)!r} has no {' or '.join(DENOISER_ATTRIBUTES)} among its networks "
            f"({', '.join(networks) or 'none'}). A text-to-image pipeline needs one. Choose another pipeline."
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
    """Returns every network of a pipeline on the meta device, by its name in the pipeline.

    Raises:
        BackboneError: The pipeline does not exist, or the installed libraries lack one of its classes.
    """
    index = read_index(pipeline_folder(name_or_path), name_or_path)
    networks = {name: meta_component(index, name) for name in index.parts}
    return {name: network for name, network in networks.items() if network is not None}
