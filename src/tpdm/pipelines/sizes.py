"""How large the parts of a pipeline are, from their configuration files alone: no weight is read or downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tpdm.pipelines.backbones import DENOISERS, find_entry, token_width
from tpdm.pipelines.components import meta_component
from tpdm.pipelines.index import read_index
from tpdm.pipelines.load import pipeline_folder
from tpdm.types import BackboneError


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
    denoiser = next((name for name in DENOISERS if name in networks), None)
    if denoiser is None:
        raise BackboneError(
            f"got the parts {', '.join(networks) or 'none'} in {str(name_or_path)!r}, expected one called "
            f"{' or '.join(DENOISERS)}: give a text-to-image pipeline."
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
