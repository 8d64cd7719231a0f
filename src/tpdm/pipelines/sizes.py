"""How large the parts of a pipeline are, from their configuration files alone: no weight is read or downloaded."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpdm.pipelines.backbones import DENOISERS, find_entry, token_width
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
        BackboneError: there is no such pipeline.
    """
    import diffusers

    place = pipeline_folder(name_or_path)
    try:
        index = diffusers.DiffusionPipeline.load_config(place)
        parts = {name: part for name, part in index.items() if isinstance(part, list) and part[0]}
        networks = {name: _on_meta(place, name, *part) for name, part in parts.items()}
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"got {str(name_or_path)!r}, whose configuration cannot be read, expected 'tinyworld', a pipeline folder "
            f"or a Hub name 'owner/model': {reason}"
        ) from error
    return {name: network for name, network in networks.items() if network is not None}


def default_steps(name_or_path: str | Path) -> int:
    """Steps of the pipeline's call where the caller says nothing.

    Raises:
        BackboneError: there is no such pipeline.
    """
    import diffusers

    try:
        index = diffusers.DiffusionPipeline.load_config(pipeline_folder(name_or_path))
        cls = getattr(diffusers, index["_class_name"])
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"got {str(name_or_path)!r}, whose model_index.json cannot be used, expected 'tinyworld', a pipeline "
            f"folder or a Hub name 'owner/model': {reason}"
        ) from error
    return int(inspect.signature(cls.__call__).parameters["num_inference_steps"].default)


def _on_meta(path: str | Path, name: str, library: str, cls_name: str) -> nn.Module | None:
    """The part with its shapes and without its numbers; None for what is no network (tokenizer, scheduler)."""
    import diffusers
    import transformers

    found: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), cls_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        return None
    cls: Any = found
    with torch.device("meta"):
        if library == "diffusers":
            network: nn.Module = cls.from_config(cls.load_config(path, subfolder=name))
        else:
            network = cls(cls.config_class.from_pretrained(path, subfolder=name))
    return network
