"""How much memory a run will take, by part, place and phase, before anything is loaded.

Weights, records and optimizer are counted exactly. Activations are counted on shapes (``pipelines.activations``),
without workspaces of kernels. Two parts are assumed, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tpdm.pipelines.load import DTYPES
from tpdm.pipelines.sizes import PipelineSizes
from tpdm.policy import TimePredictor
from tpdm.policy_shape import TpmShape
from tpdm.recipe import Recipe
from tpdm.rewards.shapes import reward_shape
from tpdm.train.peaks import (
    decoding_peak,
    embeddings_bytes,
    learning_peak,
    rollout_call,
    rollout_peak,
    scoring_peak,
)

GIB = 2**30
ADAM = 4  # weights, gradients and two moments
CONTEXT = 1 * GIB  # assumed: what CUDA and the kernels' libraries take of a GPU before the first tensor
PROCESS = 3 * GIB  # assumed: Python, PyTorch with CUDA, and transformers, on the host

Place = Literal["device", "host", "disk"]
Phase = Literal["always", "encoding", "loading", "training", "rollout", "decoding", "scoring", "learning"]
BEFORE: tuple[Phase, ...] = ("encoding", "loading")
RUNNING: tuple[Phase, ...] = ("rollout", "decoding", "scoring", "learning")


@dataclass(frozen=True)
class MemoryPart:
    """One part of the estimate.

    Attributes:
        name: in words.
        size: bytes; None is not counted.
        place: "device" (the GPU), "host" or "disk".
        phase: when it is there. "encoding" is over before "loading" begins, and that before the
            phases of "training" do.
    """

    name: str
    size: int | None
    place: Place
    phase: Phase


def memory_peaks(parts: Sequence[MemoryPart], place: Place) -> dict[str, int]:
    """Bytes of each phase in which something is there, by the phase's name."""
    phases: dict[str, int] = {}
    for phase in (*BEFORE, *RUNNING):
        there = {"always", phase} | ({"training"} if phase in RUNNING else set())
        sizes = [part.size or 0 for part in parts if part.place == place and part.phase in there]
        if phase in RUNNING or any((part.phase, part.place) == (phase, place) for part in parts):
            phases[phase] = sum(sizes)
    return phases


def estimate_memory(recipe: Recipe, sizes: PipelineSizes, texts: int) -> list[MemoryPart]:
    """The parts of a run.

    Args:
        recipe: of the run.
        sizes: of its pipeline.
        texts: distinct prompts that it draws.
    """
    shape = TpmShape(
        feature_channels=sizes.feature_channels,
        temb_channels=sizes.temb_channels,
        channels=recipe.tpm.channels,
        grid=recipe.tpm.grid,
    )
    policy, reward = TimePredictor(shape), reward_shape(recipe.reward.name)
    weights = None if reward is None else 4 * reward.parameters
    judges: Place = "host" if recipe.reward.device == "cpu" else "device"
    tpm = sum(p.numel() for p in policy.parameters())
    replay = replay_bytes(recipe, sizes.feature_channels, sizes.temb_channels)
    call = rollout_call(recipe, sizes)
    height, width = call.height * 8, call.width * 8
    trajectories = recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt
    looks = 1 if recipe.reward.gamma_range is None else recipe.validation.dial_points
    images = max(trajectories, recipe.validation.prompts * recipe.validation.samples_per_prompt * looks)
    parts = [
        *_weights(recipe, sizes),
        MemoryPart("TPM, gradients and optimizer", tpm * 4 * ADAM, "device", "training"),
        MemoryPart(f"reward {recipe.reward.label}", weights, judges, "training"),
        MemoryPart("CUDA context and libraries (assumed)", CONTEXT, "device", "always"),
        MemoryPart("denoiser activations", rollout_peak(recipe, sizes, policy, call), "device", "rollout"),
        MemoryPart("decoder activations", decoding_peak(recipe, sizes, call), "device", "decoding"),
        MemoryPart("reward activations", scoring_peak(recipe, reward, height, width), judges, "scoring"),
        MemoryPart("TPM activations", learning_peak(recipe, shape), "device", "learning"),
        MemoryPart("Python and libraries (assumed)", PROCESS, "host", "always"),
        MemoryPart("pictures of an update or a validation", 4 * 3 * height * width * images, "host", "training"),
        MemoryPart("replay of one update, at most", replay, "host", "training"),
        MemoryPart("its flat copy, while passes run", replay, "host", "learning"),
    ]
    if recipe.backbone.text_encoders == "leave":
        parts.append(MemoryPart("embeddings of all prompts", embeddings_bytes(sizes, call, texts), "disk", "training"))
    return parts


def replay_bytes(recipe: Recipe, feature_channels: int, temb_channels: int) -> int:
    """Bytes that the decisions of one update take if every image runs to the cap: independent of the image's size."""
    maps = 2 if recipe.tpm.maps == "first_last" else 1
    observation = maps * feature_channels * recipe.tpm.grid**2 + temb_channels
    decisions = recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt * recipe.sampling.max_steps
    return 2 * observation * decisions  # fp16


def _weights(recipe: Recipe, sizes: PipelineSizes) -> list[MemoryPart]:
    """Frozen networks; all pass the host when they are loaded."""
    leave, size = recipe.backbone.text_encoders == "leave", DTYPES[recipe.backbone.dtype].itemsize
    parts, stay = [], {}
    for name, count in sizes.parameters.items():
        encodes = name.startswith("text_encoder") and leave
        if encodes or recipe.backbone.offload == "none":
            parts.append(MemoryPart(f"{name} (frozen)", count * size, "device", "encoding" if encodes else "training"))
            parts.append(MemoryPart(f"{name}, on its way", count * size, "host", "encoding" if encodes else "loading"))
        else:
            stay[name] = count * size
    return [*parts, *_offloaded(recipe, stay)]


def _offloaded(recipe: Recipe, weights: dict[str, int]) -> list[MemoryPart]:
    """Networks (bytes by name) that stay on the host; one of them, or one layer, is on the device at a time."""
    if not weights:
        return []
    parts = [MemoryPart(f"{name} (frozen, offloaded)", size, "host", "training") for name, size in weights.items()]
    if recipe.backbone.offload == "sequential":
        return [*parts, MemoryPart("one layer of a network", None, "device", "training")]
    decoder = weights.get("vae", 0)
    largest = max([size for name, size in weights.items() if name != "vae"], default=0)
    return [
        *parts,
        MemoryPart("largest network but the decoder, while called", largest, "device", "rollout"),
        MemoryPart("decoder, while called", decoder, "device", "decoding"),
    ]
