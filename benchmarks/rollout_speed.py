"""What it is worth that finished images leave the batch, what the TPM costs, and how long the update passes take.

    python benchmarks/rollout_speed.py                      a small shape on the CPU
    python benchmarks/rollout_speed.py --shape sd3-medium   the published shape with random weights, on a GPU
    python benchmarks/rollout_speed.py --shape flux1-dev
    python benchmarks/rollout_speed.py --shape tiny         printed alone

Every image has a schedule of its own, as many steps long as a trained TPM took for some held-out prompt of tinyworld
(docs/results/demo-curves.json). The same batch runs with finished images leaving the denoiser's call, and with all of
them staying until the slowest has ended, in turn. The bound is sum(N) / (B max N), the share of the denoiser's rows
that is left. Medians and ranges over the repetitions go to docs/results/rollout-speed-SHAPE.json, with the hardware.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel

from memory_plan import flux1_dev, sd3_medium, vae
from tpdm.config.recipe import OptimizerConfig, RlConfig
from tpdm.core.io import write_json
from tpdm.pipelines.active_rows import ActiveRows
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.training.policy_update import make_optimizer, update_policy
from tpdm.training.rollout import make_rollout_buffer

ROOT = Path(__file__).parents[1]
CURVES = ROOT / "docs" / "results" / "demo-curves.json"


def small_sd3() -> Any:
    return SD3Transformer2DModel(
        **{"sample_size": 32, "in_channels": 16, "out_channels": 16, "num_layers": 6, "attention_head_dim": 32},
        **{"num_attention_heads": 8, "joint_attention_dim": 64, "pooled_projection_dim": 64},
        **{"caption_projection_dim": 256, "pos_embed_max_size": 32},
    )


def tiny_sd3() -> Any:
    return SD3Transformer2DModel(
        **{"sample_size": 8, "in_channels": 16, "out_channels": 16, "num_layers": 1, "attention_head_dim": 8},
        **{"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16},
        **{"caption_projection_dim": 16, "pos_embed_max_size": 8},
    )


@dataclass(frozen=True)
class Shape:
    """A denoiser, the sides of its picture, and what the runs are made of; guided pipelines take two rows an image."""

    make: Callable[[], Any]
    side: int
    batch: int
    text: int
    repeats: int
    guidance: float
    dtype: torch.dtype = torch.float32


SHAPES = {
    "tiny": Shape(tiny_sd3, 64, 3, 4, 1, 4.0),
    "small": Shape(small_sd3, 128, 8, 16, 5, 4.0),
    "sd3-medium": Shape(sd3_medium, 1024, 8, 333, 3, 7.0, torch.float16),
    "flux1-dev": Shape(flux1_dev, 1024, 4, 512, 3, 3.5, torch.bfloat16),
}


class Staying(ActiveRows):
    """Finished images stay in the call, as in the release."""

    def __init__(self, denoiser: Any, read_active: Any, guided: bool = True) -> None:
        super().__init__(denoiser, lambda: (read_active()[0], list(range(read_active()[0]))), guided)


def build(shape: Shape, device: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline with random weights, and a call of it on stand-in embeddings."""
    torch.manual_seed(0)
    with torch.device(device):
        denoiser, decoder = shape.make().to(shape.dtype).eval(), vae().to(shape.dtype).eval()
    flux = isinstance(denoiser, FluxTransformer2DModel)
    cls = diffusers.FluxPipeline if flux else diffusers.StableDiffusion3Pipeline
    numbers = ("", "_2") if flux else ("", "_2", "_3")
    absent = dict.fromkeys(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in numbers)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = cls(transformer=denoiser, vae=decoder, scheduler=scheduler, **absent)
    pipe.set_progress_bar_config(disable=True)
    signs = ("",) if flux else ("", "negative_")
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
    histogram = json.loads(CURVES.read_text(encoding="utf-8"))[0]["last_steps_histogram"]
    taken = sorted(int(n) for n, count in histogram.items() for _ in range(count))
    return [taken[round((i + 0.5) / batch * len(taken) - 0.5)] for i in range(batch)]


def timed(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def rollout(shape: Shape, pipe: Any, call: dict[str, Any], device: str) -> dict[str, Any]:
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
    pairs = [(timed(leave, device), timed(stay, device)) for _ in range(shape.repeats)]
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
    """Share of the TPM in a rollout, and time of the update passes beside that rollout."""
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

    def decide() -> Any:
        return policy.propose(replay.observation.rows(slice(0, shape.batch)), None)

    decide()
    pairs = [
        (
            timed(decide, device),
            timed(lambda: blind(**call, seeds=seeds), device) / steps,
            timed(lambda: update_policy(policy, optimizer, replay, advantage_B, rl, 1.0, None), device),
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


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    name = parser.parse_args().shape
    shape = SHAPES[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and shape.side > 256:
        raise SystemExit(f"got shape {name} without a GPU, expected small: {name} needs one")
    pipe, call = build(shape, device)
    results = {
        "shape": name,
        "hardware": hardware(device),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rollout": rollout(shape, pipe, call, device),
        "learning": learning(shape, pipe, call, device),
    }
    if device == "cuda":
        results["peak_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(results, indent=1))
    if name != "tiny":
        write_json(ROOT / "docs" / "results" / f"rollout-speed-{name}.json", results)


if __name__ == "__main__":
    main()
