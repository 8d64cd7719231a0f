"""Pipelines of published and of small shapes with random weights, and images that take as many steps as trained ones.

With random weights a TPM does not depend on the prompt. The number of steps of an image is drawn from the histogram of
the demo's TPM on held-out prompts of tinyworld, by the seed of the image. The same image takes the same steps in every
way to serve it. The TPM is still evaluated at every step, for its cost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmarks.shapes import SD3_MEDIUM, SMALL, TINY, Shape, make_pipeline, steps_taken
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

RANGE = (0.1, 0.9)  # gammas that carry the number of steps to the TPM
MOST = 64  # steps that a gamma can carry


class AssignedSteps(TimePredictionModule):
    """A TPM whose decisions are ignored: an image takes the uniform steps that its gamma asks for."""

    def propose(self, observation: Any, seeds: Any) -> Any:
        """Computes the decision of the TPM; returns 1 - (i + 1) / n."""
        decision = super().propose(observation, seeds)
        n_B = steps_of(observation.gamma_B)
        t_next_B = (1 - (observation.index_B + 1).to(n_B) / n_B).clamp_min(0.0)
        return replace(decision, t_next_B=t_next_B.to(decision.t_next_B))


def gamma_of(steps: int) -> float:
    """The gamma that asks for a number of steps."""
    return RANGE[0] + (RANGE[1] - RANGE[0]) * steps / MOST


def steps_of(gamma_B: Tensor) -> Tensor:
    """The number of steps that ``gamma_of`` was given."""
    return ((gamma_B - RANGE[0]) / (RANGE[1] - RANGE[0]) * MOST).round()


@dataclass(frozen=True)
class Served:
    """A pipeline to be served.

    Attributes:
        words: what it is, for the results.
        shape: of random weights; None is tinyworld as it is, with its own TPM.
        sides: of its images in pixels, unless others are asked for.
        guidance: of its calls; above 1 an image takes two rows.
        text: ``max_sequence_length`` of its calls.
        accelerator: whether it needs one.
    """

    words: str
    shape: Shape | None
    sides: tuple[int, ...]
    guidance: float
    text: int
    accelerator: bool = False


RANDOM = "random weights, steps drawn from the histogram of tinyworld's TPM by the seed of the image"
SERVED = {
    "tinyworld": Served("tinyworld with its TPM", None, (64,), 1.0, 0),
    "small": Served(
        f"Stable Diffusion 3 of 12 layers and width 384, unguided, {RANDOM}",
        # Chosen so that the denoiser is most of the cost: with half the layers and a wider decoder the same engine
        # reached a smaller share of the bound. The text below the table says what is left.
        SMALL,
        (128,),
        1.0,
        0,
    ),
    "sd3-medium": Served(
        f"the shape of Stable Diffusion 3 Medium between small text encoders, {RANDOM}",
        SD3_MEDIUM,
        (512, 1024),
        7.0,
        256,
        accelerator=True,
    ),
    "tiny": Served(f"one layer, {RANDOM}", TINY, (32,), 1.0, 0),
}


def serve_shape(served: Served, device: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline on its device, and the arguments of its calls."""
    if served.shape is None:
        return load_pipeline("tinyworld", device=device), call_defaults("tinyworld")
    return make_pipeline(served.shape, device), {"guidance_scale": served.guidance, "max_sequence_length": served.text}


def assigned_policy(pipe: Any, call: dict[str, Any], side: int) -> AssignedSteps:
    """A TPM that fits the pipeline, on its device."""
    widths = infer_feature_shapes(pipe, {**call, "height": side, "width": side})
    shape = TPMConfig(widths.feature_channels, widths.temb_channels, gamma_range=RANGE, storage="fp32")
    return AssignedSteps(shape).eval().to(pipe.device)


def assigned_gamma(seed: int) -> float:
    """The gamma of an image of this seed."""
    return gamma_of(random.Random(seed).choice(steps_taken()))
