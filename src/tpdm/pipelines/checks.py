"""What ``attach`` refuses: pipelines that no policy can drive, each in one sentence."""

from __future__ import annotations

from typing import Any

from tpdm.pipelines.backbones import TapEntry, find_denoiser, find_entry
from tpdm.types import BackboneError


def check_pipe(pipe: Any) -> TapEntry:
    """The entry of the pipeline's denoiser.

    Raises:
        BackboneError: no scheduler, no denoiser, an unknown one, or a chain that is split by the time.
    """
    if getattr(pipe, "scheduler", None) is None:
        raise BackboneError(
            f"got {type(pipe).__name__} without a scheduler, expected a text-to-image DiffusionPipeline such as "
            "StableDiffusion3Pipeline: load one with tpdm.pipelines.load."
        )
    entry = find_entry(find_denoiser(pipe))
    if getattr(pipe, "transformer_2", None) is not None or pipe.config.get("boundary_ratio") is not None:
        raise BackboneError(
            f"got {type(pipe).__name__} with two experts that share the chain (transformer_2), expected one denoiser "
            "for all times: use Wan 2.1, or another model with a single one."
        )
    if pipe.config.get("expand_timesteps"):
        raise BackboneError(
            f"got {type(pipe).__name__} with one time per token (expand_timesteps), expected one time per image: use "
            "Wan 2.1, or another model that takes one."
        )
    return entry
