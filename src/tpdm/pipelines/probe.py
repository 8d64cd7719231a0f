"""Properties of a pipeline that one evaluation shows: feature shapes, and its own schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpdm.core.types import Decision, Features, Observation, Policy
from tpdm.pipelines.attach import attach
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.pipelines.time_mapping import flow_times, vp_times


@dataclass(frozen=True)
class FeatureWidths:
    """Widths of the features, and the token grid (H, W) of the call's image size."""

    feature_channels: int
    temb_channels: int
    token_grid: tuple[int, int]


class _Probe(Policy):
    """Policy that records the shapes of the first features and jumps to t = 0."""

    reads_features = True

    def __init__(self) -> None:
        self.widths: FeatureWidths | None = None

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        assert features is not None
        _, D, H, W = features.first_BDHW.shape
        self.widths = FeatureWidths(D, features.temb_BE.shape[-1], (H, W))
        return Observation(None, None, t_B, index_B, row_B)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        t_B = observation.t_B
        return Decision(torch.zeros_like(t_B), torch.full_like(t_B, 1e-3), torch.zeros_like(t_B))


def default_times(pipe: Any, steps: int, arguments: Mapping[str, Any]) -> list[float]:
    """Returns the pipeline's own schedule, from its first time down to 0.0.

    A flow pipeline shifts its schedule by the size of the image, so it runs here and is stopped after its first step.
    The schedule of a diffusion model depends only on its scheduler.

    Args:
        pipe: Pipeline that ``attach`` accepts.
        steps: Number of steps, >= 1.
        arguments: Arguments of its call (height, width ...).
    """
    if find_entry(find_denoiser(pipe)).path == "vp":
        return vp_times(pipe.scheduler, steps)

    def stop(pipe: Any, index: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True  # documented way of diffusers
        return {}

    call = {"prompt": "a", "output_type": "latent", **arguments}
    pipe(**call, num_inference_steps=steps, callback_on_step_end=stop)
    return flow_times(pipe.scheduler)


def infer_feature_shapes(pipe: Any, arguments: Mapping[str, Any]) -> FeatureWidths:
    """Runs one step of the pipeline without decoding, and returns the shapes of the features.

    Args:
        pipe: Pipeline that ``attach`` accepts.
        arguments: Arguments of its call (guidance_scale, height, width ...). They may replace the prompt "a".

    Raises:
        BackboneError: The pipeline cannot be driven.
    """
    probe = _Probe()
    attach(pipe, probe, max_steps=1)(**{"prompt": "a", "seeds": [0], "output_type": "latent", **arguments})
    assert probe.widths is not None
    return probe.widths
