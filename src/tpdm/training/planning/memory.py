"""An estimate of the memory of a run by part, place and phase, before anything is loaded.

Weights, recorded decisions and optimizer are counted exactly. Activations are counted on the meta device
(``tpdm.training.planning.meta``), without workspaces of kernels. Two parts are assumed, and their names say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from tpdm.config.recipe import Recipe
from tpdm.core.types import Observation
from tpdm.pipelines.feature_hooks import FeatureHooks
from tpdm.pipelines.loading.load import DTYPES, pipeline_arguments
from tpdm.pipelines.metadata import PipelineSizes
from tpdm.pipelines.registry import find_entry
from tpdm.pipelines.vae import decoding_in_slices
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.training.planning.meta import CALLS, CallShape, denoiser_call, peak_of, text_bytes, token_grid
from tpdm.training.planning.reward_meta import RewardShape, reward_shape

GIB = 2**30

ADAM = 4  # weights, gradients and two moments

CONTEXT = 1 * GIB  # assumed: GPU memory of CUDA and kernel libraries before the first tensor

PROCESS = 3 * GIB  # assumed: host memory of Python, PyTorch with CUDA, and transformers

Place = Literal["device", "host", "disk"]

Phase = Literal["always", "encoding", "loading", "training", "rollout", "decoding", "scoring", "learning"]

BEFORE: tuple[Phase, ...] = ("encoding", "loading")

RUNNING: tuple[Phase, ...] = ("rollout", "decoding", "scoring", "learning")


@dataclass(frozen=True)
class MemoryPart:
    """One part of the estimate.

    Attributes:
        name: Description of the part.
        size: Size in bytes. None if it is not counted.
        place: "device" (the GPU), "host" or "disk".
        phase: When the part exists. "encoding" ends before "loading" begins. "loading" ends before "training", which
            consists of the phases in ``RUNNING``.
    """

    name: str
    size: int | None
    place: Place
    phase: Phase


def memory_peaks(parts: Sequence[MemoryPart], place: Place) -> dict[str, int]:
    """Bytes of each phase at one place.

    Args:
        parts: Parts of the estimate.
        place: "device", "host" or "disk".

    Returns:
        Bytes by phase. Phases before the training are left out if they have no part at this place.
    """
    phases: dict[str, int] = {}
    for phase in (*BEFORE, *RUNNING):
        there = {"always", phase} | ({"training"} if phase in RUNNING else set())
        sizes = [part.size or 0 for part in parts if part.place == place and part.phase in there]
        if phase in RUNNING or any((part.phase, part.place) == (phase, place) for part in parts):
            phases[phase] = sum(sizes)
    return phases


def estimate_memory(recipe: Recipe, sizes: PipelineSizes, texts: int) -> list[MemoryPart]:
    """The parts of the memory estimate of a run.

    Args:
        recipe: Recipe of the run.
        sizes: Sizes of its pipeline.
        texts: Number of distinct prompts that it draws.
    """
    shape = TPMConfig(
        feature_channels=sizes.feature_channels,
        temb_channels=sizes.temb_channels,
        channels=recipe.tpm.channels,
        grid=recipe.tpm.grid,
    )
    policy, reward = TimePredictionModule(shape), reward_shape(recipe.reward.name)
    weights = None if reward is None else 4 * reward.parameters
    judges: Place = "host" if recipe.reward.device == "cpu" else "device"
    tpm = sum(p.numel() for p in policy.parameters())
    decision = decision_bytes(recipe, sizes.feature_channels, sizes.temb_channels)
    call = rollout_call(recipe, sizes)
    height, width = call.height * 8, call.width * 8
    trajectories, max_steps = recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt, recipe.sampling.max_steps
    points = 1 if recipe.reward.gamma_range is None else recipe.validation.gamma_points
    images = max(trajectories, recipe.validation.prompts * recipe.validation.samples_per_prompt * points)
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
        MemoryPart("images of an update or a validation", 4 * 3 * height * width * images, "host", "training"),
        # Where the pipeline computes. The copy of a micro-batch is part of the TPM activations.
        MemoryPart("rollout buffer of one update, at most", decision * trajectories * max_steps, "device", "training"),
    ]
    if recipe.backbone.precompute_prompt_embeddings:
        parts.append(MemoryPart("embeddings of all prompts", embeddings_bytes(sizes, call, texts), "disk", "training"))
    return parts


def decision_bytes(recipe: Recipe, feature_channels: int, temb_channels: int) -> int:
    """Bytes of one recorded decision. They do not depend on the size of the image."""
    maps = 2 if recipe.tpm.feature_maps == "first_last" else 1
    return 2 * (maps * feature_channels * recipe.tpm.grid**2 + temb_channels)  # fp16


def _weights(recipe: Recipe, sizes: PipelineSizes) -> list[MemoryPart]:
    """Frozen networks. Each passes through host memory when it is loaded."""
    leave, size = recipe.backbone.precompute_prompt_embeddings, DTYPES[recipe.backbone.dtype].itemsize
    parts, stay = [], {}
    for name, count in sizes.parameters.items():
        encodes = name.startswith("text_encoder") and leave
        if encodes or recipe.backbone.offload == "none":
            parts.append(MemoryPart(f"{name} (frozen)", count * size, "device", "encoding" if encodes else "training"))
            parts.append(
                MemoryPart(f"{name}, during loading", count * size, "host", "encoding" if encodes else "loading")
            )
        else:
            stay[name] = count * size
    return [*parts, *_offloaded(recipe, stay)]


def _offloaded(recipe: Recipe, weights: dict[str, int]) -> list[MemoryPart]:
    """Networks (bytes by name) that stay on the host. One of them, or one layer, is on the device at a time."""
    if not weights:
        return []
    parts = [MemoryPart(f"{name} (frozen, offloaded)", size, "host", "training") for name, size in weights.items()]
    if recipe.backbone.offload == "sequential":
        return [*parts, MemoryPart("one layer of a network", None, "device", "training")]
    decoder = weights.get("vae", 0)
    largest = max([size for name, size in weights.items() if name != "vae"], default=0)
    return [
        *parts,
        MemoryPart("largest network except the decoder, while called", largest, "device", "rollout"),
        MemoryPart("decoder, while called", decoder, "device", "decoding"),
    ]


def rollout_call(recipe: Recipe, sizes: PipelineSizes) -> CallShape:
    """One denoiser call of a rollout while every image is active."""
    backbone, denoiser = recipe.backbone, sizes.networks[sizes.denoiser]
    entry = find_entry(denoiser)
    arguments = pipeline_arguments(backbone)
    # The configuration of packed flow transformers has no size. Their pipelines make images of 1024 pixels.
    default = getattr(denoiser.config, "sample_size", None) or 128
    height = backbone.height // 8 if backbone.height else default
    width = backbone.width // 8 if backbone.width else default
    scale = arguments.get(entry.guidance_scale)
    guided = entry.guidance != "two_calls" and (scale is None or scale > entry.guided_above)
    text = arguments.get("max_sequence_length")
    rows = recipe.rl.rollout_batch * (2 if guided else 1)
    return CallShape(rows, height, width, text, DTYPES[backbone.dtype])


def rollout_peak(recipe: Recipe, sizes: PipelineSizes, policy: TimePredictionModule, shape: CallShape) -> int | None:
    """Peak bytes of the denoiser, the features that hooks keep, and the maps that the TPM pools."""
    denoiser = nn.Module.to(sizes.networks[sizes.denoiser], shape.dtype).eval()  # the method of diffusers warns
    if type(denoiser).__name__ not in CALLS:
        return None
    images, grid = recipe.rl.rollout_batch, token_grid(denoiser, shape)

    @torch.no_grad()
    def run() -> object:
        call = denoiser_call(denoiser, shape)
        assert call is not None
        with FeatureHooks(denoiser) as hooks:
            hooks.entry = replace(hooks.entry, grid=lambda arguments, network: grid)
            output = denoiser(**call)
            features = hooks.features(images)
            t_B, index_B = _shape(images), _shape(images, dtype=torch.int64)
            return output, policy.observe(features, t_B, index_B, index_B)

    return peak_of(run)


def decoding_peak(recipe: Recipe, sizes: PipelineSizes, shape: CallShape) -> int | None:
    """Peak bytes of the decoder with slices, and of the images of a batch in fp32 before they go to the host."""
    vae: Any = sizes.networks.get("vae")
    if type(vae).__name__ != "AutoencoderKL":
        return None
    nn.Module.to(vae, shape.dtype).eval()
    batch, channels = recipe.rl.rollout_batch, vae.config.latent_channels

    @torch.no_grad()
    def run() -> object:
        latents = _shape(batch, channels, shape.height, shape.width, dtype=shape.dtype)
        with decoding_in_slices(SimpleNamespace(vae=vae), recipe.backbone.decode_batch or batch):
            image = vae.decode(latents, return_dict=False)[0]
        return (image * 0.5 + 0.5).clamp(0, 1).float()

    return peak_of(run)


def scoring_peak(recipe: Recipe, reward: RewardShape | None, height: int, width: int) -> int | None:
    """Peak bytes of the reward on one batch of images. None if its shape is unknown."""
    if reward is None:
        return None
    images = min(recipe.reward.batch, recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt)

    @torch.no_grad()
    def run() -> object:
        return reward.see(_shape(images, 3, height, width))

    return peak_of(run)


def learning_peak(recipe: Recipe, shape: TPMConfig) -> int:
    """Peak bytes of a forward and backward pass over a micro-batch, which contains at least one whole trajectory."""
    policy = TimePredictionModule(shape).to("meta")
    decisions = max(recipe.rl.update_batch, recipe.sampling.max_steps)

    def run() -> object:
        maps = _shape(decisions, shape.map_channels, shape.grid, shape.grid, dtype=torch.float16)
        temb = _shape(decisions, shape.temb_channels, dtype=torch.float16)
        t, index = _shape(decisions), _shape(decisions, dtype=torch.int64)
        logp_B, _, _ = policy.evaluate(Observation(maps, temb, t, index, index, change_B=t), _shape(decisions))
        torch.autograd.backward(logp_B.sum())
        return logp_B

    return peak_of(run)


def embeddings_bytes(sizes: PipelineSizes, shape: CallShape, texts: int) -> int | None:
    """Bytes of all prompt embeddings on the disk. None if the class of the denoiser is unknown."""
    call = denoiser_call(sizes.networks[sizes.denoiser], shape)
    return None if call is None else texts * text_bytes(call)


def _shape(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")
