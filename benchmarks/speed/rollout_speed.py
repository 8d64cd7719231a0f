"""What it is worth that finished images leave the batch, what the TPM costs, and how long the update passes take.

Every image has a schedule of its own, as many steps long as a trained TPM took for some held-out prompt of tinyworld
(docs/results/demo-curves.json). The same batch runs, in turn, with finished images leaving the denoiser's call and with
all of them staying until the slowest has ended. The bound is sum(N) / (B max N), the share of the denoiser's rows that
is left. The published shapes have random weights and need a GPU; results of --shape tiny are only printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from benchmarks.shapes import autoencoder, flux, sd3, steps_taken
from benchmarks.timing import hardware, seconds_of, spread, versions
from tpdm.config.recipe import OptimizerConfig, RlConfig
from tpdm.pipelines.active_rows import ActiveRows
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.training.policy_update import make_optimizer, update_policy
from tpdm.training.rollout import make_rollout_buffer


@dataclass(frozen=True)
class Shape:
    """A denoiser, the side of its images, and a call of it. Guided pipelines take two rows an image."""

    make: Callable[[], Any]
    side: int
    batch: int
    text: int
    repeats: int
    guidance: float
    dtype: torch.dtype = torch.float32


SHAPES = {
    "tiny": Shape(lambda: sd3(1, 2, 8, 16, 16, sample_size=8, pos_embed_max_size=8), 64, 3, 4, 1, 4.0),
    "small": Shape(lambda: sd3(6, 8, 32, 64, 64, sample_size=32, pos_embed_max_size=32), 128, 8, 16, 5, 4.0),
    "sd3-medium": Shape(lambda: sd3(24, 24), 1024, 8, 333, 3, 7.0, torch.float16),
    "flux1-dev": Shape(flux, 1024, 4, 512, 3, 3.5, torch.bfloat16),
}


class Staying(ActiveRows):
    """Finished images stay in the call, as in the release."""

    def __init__(self, denoiser: Any, read_active: Any, guided: bool = True) -> None:
        super().__init__(denoiser, lambda: (read_active()[0], list(range(read_active()[0]))), guided)


def build(shape: Shape, device: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline with random weights, and a call of it on stand-in embeddings."""
    torch.manual_seed(0)
    with torch.device(device):
        denoiser, decoder = shape.make().to(shape.dtype).eval(), autoencoder().to(shape.dtype).eval()
    is_flux = isinstance(denoiser, FluxTransformer2DModel)
    cls = diffusers.FluxPipeline if is_flux else diffusers.StableDiffusion3Pipeline
    numbers = ("", "_2") if is_flux else ("", "_2", "_3")
    absent = dict.fromkeys(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in numbers)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = cls(transformer=denoiser, vae=decoder, scheduler=scheduler, **absent)
    pipe.set_progress_bar_config(disable=True)
    signs = ("",) if is_flux else ("", "negative_")
    sizes = {"prompt_embeds": (shape.text, denoiser.config.joint_attention_dim)}
    sizes["pooled_prompt_embeds"] = (denoiser.config.pooled_projection_dim,)
    texts = {
        sign + name: torch.randn(shape.batch, *size, dtype=shape.dtype, device=device)
        for sign in signs
        for name, size in sizes.items()
    }
    call = {"height": shape.side, "width": shape.side, "guidance_scale": shape.guidance, "output_type": "latent"}
    return pipe, {**texts, **call}


def drawn_steps(batch: int) -> list[int]:
    """Steps of ``batch`` images, evenly spaced ranks of what the demo's TPM took."""
    taken = steps_taken()
    return [taken[round((i + 0.5) / batch * len(taken) - 0.5)] for i in range(batch)]


def rollout(shape: Shape, pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Images a second with finished images leaving and staying."""
    steps = drawn_steps(shape.batch)
    policy = FixedSchedule([np.linspace(1.0, 0.0, n + 1).tolist() for n in steps])
    driven, seeds = attach(pipe, policy, max_steps=max(steps)), list(range(shape.batch))

    def leave() -> Any:
        return driven(**call, seeds=seeds)

    def stay() -> Any:
        with mock.patch("tpdm.pipelines.driving.ActiveRows", Staying):
            return driven(**call, seeds=seeds)

    rows = {"leave": leave().nfe_rows, "stay": stay().nfe_rows}  # these warm up, too
    pairs = [(seconds_of(leave), seconds_of(stay)) for _ in range(shape.repeats)]
    return {
        "steps": steps,
        "rows": rows,
        "bound": sum(steps) / (len(steps) * max(steps)),
        "time_ratio": spread([left / stayed for left, stayed in pairs]),
        "images_per_second": {
            "leave": spread([shape.batch / left for left, _ in pairs]),
            "stay": spread([shape.batch / stayed for _, stayed in pairs]),
        },
    }


def learning(shape: Shape, pipe: Any, call: dict[str, Any], device: str) -> dict[str, Any]:
    """Share of the TPM in a rollout, and time of the update passes compared with that rollout."""
    width = pipe.transformer.inner_dim
    policy = TimePredictionModule(TPMConfig(width, width)).to(device)
    steps = max(drawn_steps(shape.batch))
    seeds = list(range(shape.batch))
    blind = attach(pipe, FixedSchedule(np.linspace(1.0, 0.0, steps + 1).tolist()))
    driven = attach(pipe, policy, max_steps=steps)
    made = driven(**call, seeds=seeds, sample=True, record=True)
    replay = make_rollout_buffer(made.trajectories)
    optimizer, rl = make_optimizer(policy, OptimizerConfig()), RlConfig(epochs=1)
    advantage_B = torch.linspace(-1, 1, shape.batch)

    observation = replay.observation.rows(slice(0, shape.batch))

    def decide() -> Any:
        return policy.propose(observation, None)

    decide()
    pairs = [
        (
            seconds_of(decide),
            seconds_of(lambda: blind(**call, seeds=seeds)) / steps,
            seconds_of(lambda: update_policy(policy, optimizer, replay, advantage_B, rl, 1.0, None)),
        )
        for _ in range(shape.repeats)
    ]
    return {
        "decision_share_of_a_step": spread([decision / step for decision, step, _ in pairs]),
        "pass_per_decision_share_of_a_step": spread(
            [passed / len(replay.action_T) * shape.batch / step for _, step, passed in pairs]
        ),
        "pass_seconds": spread([passed for _, _, passed in pairs]),
        "decisions": len(replay.action_T),
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=list(SHAPES), default="small")


def results(chosen: argparse.Namespace) -> str | None:
    return None if chosen.shape == "tiny" else f"docs/results/rollout-speed-{chosen.shape}.json"


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES[chosen.shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and shape.side > 256:
        raise SystemExit(f"--shape {chosen.shape} needs a GPU. There is none here. Try --shape small.")
    pipe, call = build(shape, device)
    facts = {
        "shape": chosen.shape,
        "hardware": hardware(device),
        "versions": versions(),
        "rollout": rollout(shape, pipe, call),
        "learning": learning(shape, pipe, call, device),
    }
    return facts | ({"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {})
