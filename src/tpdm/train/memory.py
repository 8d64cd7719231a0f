"""How much memory a run will take, by part, place and phase, before anything is loaded.

Weights, records and optimizer are counted exactly. Activations are counted on shapes (``pipelines.activations``),
without workspaces of kernels. Two parts are assumed, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from tpdm.pipelines.activations import peak_of
from tpdm.pipelines.backbones import find_entry
from tpdm.pipelines.decoding import decoding_in_slices
from tpdm.pipelines.denoiser_calls import CALLS, CallShape, denoiser_call, text_bytes, token_grid
from tpdm.pipelines.load import DTYPES, pipeline_arguments
from tpdm.pipelines.sizes import PipelineSizes
from tpdm.pipelines.taps import FeatureTaps
from tpdm.policy import TimePredictor
from tpdm.policy_shape import TpmShape
from tpdm.recipe import Recipe
from tpdm.rewards.shapes import RewardShape, reward_shape
from tpdm.types import Observation

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
    call = _call(recipe, sizes)
    height, width = call.height * 8, call.width * 8
    trajectories = recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt
    looks = 1 if recipe.reward.gamma_range is None else recipe.validation.dial_points
    images = max(trajectories, recipe.validation.prompts * recipe.validation.samples_per_prompt * looks)
    parts = [
        *_weights(recipe, sizes),
        MemoryPart("TPM, gradients and optimizer", tpm * 4 * ADAM, "device", "training"),
        MemoryPart(f"reward {recipe.reward.label}", weights, judges, "training"),
        MemoryPart("CUDA context and libraries (assumed)", CONTEXT, "device", "always"),
        MemoryPart("denoiser activations", _rollout(recipe, sizes, policy, call), "device", "rollout"),
        MemoryPart("decoder activations", _decoding(recipe, sizes, call), "device", "decoding"),
        MemoryPart("reward activations", _scoring(recipe, reward, height, width), judges, "scoring"),
        MemoryPart("TPM activations", _learning(recipe, shape), "device", "learning"),
        MemoryPart("Python and libraries (assumed)", PROCESS, "host", "always"),
        MemoryPart("pictures of an update or a validation", 4 * 3 * height * width * images, "host", "training"),
        MemoryPart("replay of one update, at most", replay, "host", "training"),
        MemoryPart("its flat copy, while passes run", replay, "host", "learning"),
    ]
    if recipe.backbone.text_encoders == "leave":
        parts.append(MemoryPart("embeddings of all prompts", _embeddings(sizes, call, texts), "disk", "training"))
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
    parts = []
    for name, count in sizes.parameters.items():
        encodes = name.startswith("text_encoder") and leave
        parts.append(MemoryPart(f"{name} (frozen)", count * size, "device", "encoding" if encodes else "training"))
        parts.append(MemoryPart(f"{name}, on its way", count * size, "host", "encoding" if encodes else "loading"))
    return parts


def _call(recipe: Recipe, sizes: PipelineSizes) -> CallShape:
    """One denoiser call of a rollout, when every image is active."""
    backbone, denoiser = recipe.backbone, sizes.networks[sizes.denoiser]
    entry = find_entry(denoiser)
    arguments = pipeline_arguments(backbone)
    # Flow transformers of packed tokens know no size of their own: their pipelines draw 1024 pixels.
    own = getattr(denoiser.config, "sample_size", None) or 128
    height = backbone.height // 8 if backbone.height else own
    width = backbone.width // 8 if backbone.width else own
    scale = arguments.get(entry.guidance_scale)
    guided = entry.guidance != "two_calls" and (scale is None or scale > 1)
    text = arguments.get("max_sequence_length")
    rows = recipe.rl.rollout_batch * (2 if guided else 1)
    return CallShape(rows, height, width, text, DTYPES[backbone.dtype])


def _rollout(recipe: Recipe, sizes: PipelineSizes, policy: TimePredictor, shape: CallShape) -> int | None:
    """The denoiser, the features that hooks keep of it, and what the TPM pools of them."""
    denoiser = nn.Module.to(sizes.networks[sizes.denoiser], shape.dtype).eval()  # diffusers' own `to` warns
    if type(denoiser).__name__ not in CALLS:
        return None
    images, grid = recipe.rl.rollout_batch, token_grid(denoiser, shape)

    @torch.no_grad()
    def run() -> object:
        call = denoiser_call(denoiser, shape)
        assert call is not None
        with FeatureTaps(denoiser) as taps:
            taps.entry = replace(taps.entry, grid=lambda arguments, network: grid)
            output = denoiser(**call)
            features = taps.features(images)
            t_B, index_B = torch.empty(images), torch.empty(images, dtype=torch.int64)
            return output, policy.observe(features, t_B, index_B, index_B)

    return peak_of(run)


def _decoding(recipe: Recipe, sizes: PipelineSizes, shape: CallShape) -> int | None:
    """The decoder on its slices, and the pictures of a batch until they are on the host in fp32."""
    vae: Any = sizes.networks.get("vae")
    if type(vae).__name__ != "AutoencoderKL":
        return None
    nn.Module.to(vae, shape.dtype).eval()
    batch, channels = recipe.rl.rollout_batch, vae.config.latent_channels

    @torch.no_grad()
    def run() -> object:
        latents = torch.empty(batch, channels, shape.height, shape.width, dtype=shape.dtype)
        with decoding_in_slices(SimpleNamespace(vae=vae), recipe.backbone.decode_batch or batch):
            image = vae.decode(latents, return_dict=False)[0]
        return (image * 0.5 + 0.5).clamp(0, 1).float()

    return peak_of(run)


def _scoring(recipe: Recipe, reward: RewardShape | None, height: int, width: int) -> int | None:
    if reward is None:
        return None
    images = min(recipe.reward.batch, recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt)

    @torch.no_grad()
    def run() -> object:
        return reward.see(torch.empty(images, 3, height, width))

    return peak_of(run)


def _learning(recipe: Recipe, shape: TpmShape) -> int:
    """One forward and backward pass over a micro-batch; a trajectory is never cut, so it may be one longer."""
    policy = TimePredictor(shape).to("meta")
    decisions = max(recipe.rl.update_batch, recipe.sampling.max_steps)

    def run() -> object:
        maps = torch.empty(decisions, shape.map_channels, shape.grid, shape.grid, dtype=torch.float16)
        temb = torch.empty(decisions, shape.temb_channels, dtype=torch.float16)
        t, index = torch.empty(decisions), torch.empty(decisions, dtype=torch.int64)
        logp_B, _, _ = policy.evaluate(Observation(maps, temb, t, index, index, change_B=t), torch.empty(decisions))
        torch.autograd.backward(logp_B.sum())
        return logp_B

    return peak_of(run)


def _embeddings(sizes: PipelineSizes, shape: CallShape, texts: int) -> int | None:
    with torch.device("meta"):
        call = denoiser_call(sizes.networks[sizes.denoiser], shape)
    return None if call is None else texts * text_bytes(call)
