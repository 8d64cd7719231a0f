"""Activations of a run, phase by phase, counted on shapes (``pipelines.activations``)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

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
from tpdm.rewards.shapes import RewardShape
from tpdm.types import Observation


def rollout_call(recipe: Recipe, sizes: PipelineSizes) -> CallShape:
    """One denoiser call of a rollout, when every image is active."""
    backbone, denoiser = recipe.backbone, sizes.networks[sizes.denoiser]
    entry = find_entry(denoiser)
    arguments = pipeline_arguments(backbone)
    # Flow transformers of packed tokens know no size of their own: their pipelines draw 1024 pixels.
    own = getattr(denoiser.config, "sample_size", None) or 128
    height = backbone.height // 8 if backbone.height else own
    width = backbone.width // 8 if backbone.width else own
    scale = arguments.get(entry.guidance_scale)
    guided = entry.guidance != "two_calls" and (scale is None or scale > entry.guided_above)
    text = arguments.get("max_sequence_length")
    rows = recipe.rl.rollout_batch * (2 if guided else 1)
    return CallShape(rows, height, width, text, DTYPES[backbone.dtype])


def rollout_peak(recipe: Recipe, sizes: PipelineSizes, policy: TimePredictor, shape: CallShape) -> int | None:
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
            t_B, index_B = _shape(images), _shape(images, dtype=torch.int64)
            return output, policy.observe(features, t_B, index_B, index_B)

    return peak_of(run)


def decoding_peak(recipe: Recipe, sizes: PipelineSizes, shape: CallShape) -> int | None:
    """The decoder on its slices, and the pictures of a batch until they are on the host in fp32."""
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
    """The reward on one batch of pictures; None where its shape is unknown."""
    if reward is None:
        return None
    images = min(recipe.reward.batch, recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt)

    @torch.no_grad()
    def run() -> object:
        return reward.see(_shape(images, 3, height, width))

    return peak_of(run)


def learning_peak(recipe: Recipe, shape: TpmShape) -> int:
    """One forward and backward pass over a micro-batch; a trajectory is never cut, so it may be one longer."""
    policy = TimePredictor(shape).to("meta")
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
    """What the encoded texts take on the disk; None where the denoiser's class is unknown."""
    call = denoiser_call(sizes.networks[sizes.denoiser], shape)
    return None if call is None else texts * text_bytes(call)


def _shape(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")
