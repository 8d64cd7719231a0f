"""Shapes of one denoiser call, from the configuration alone: what a plan counts activations with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

CLIP_TOKENS = 77


@dataclass(frozen=True)
class CallShape:
    """One call of a rollout.

    Attributes:
        rows: images, or twice as many under guidance in one call.
        height, width: of the image in latents (before patches).
        text: ``max_sequence_length`` of the pipeline's call; None leaves its own.
        dtype: of the weights.
    """

    rows: int
    height: int
    width: int
    text: int | None
    dtype: torch.dtype


Call = Callable[[Any, CallShape], dict[str, Any]]


def _sd3(config: Any, shape: CallShape) -> dict[str, Any]:
    tokens = CLIP_TOKENS + (256 if shape.text is None else shape.text)
    return {
        "hidden_states": _new(shape, config.in_channels, shape.height, shape.width),
        "encoder_hidden_states": _new(shape, tokens, config.joint_attention_dim),
        "pooled_projections": _new(shape, config.pooled_projection_dim),
        "timestep": torch.empty(shape.rows),
    }


def _flux(config: Any, shape: CallShape) -> dict[str, Any]:
    image, text = (shape.height // 2) * (shape.width // 2), 512 if shape.text is None else shape.text
    guidance = {"guidance": torch.empty(shape.rows)} if config.guidance_embeds else {}
    return {
        "hidden_states": _new(shape, image, config.in_channels),
        "encoder_hidden_states": _new(shape, text, config.joint_attention_dim),
        "pooled_projections": _new(shape, config.pooled_projection_dim),
        "timestep": torch.empty(shape.rows, dtype=shape.dtype),
        "img_ids": torch.empty(image, 3, dtype=shape.dtype),
        "txt_ids": torch.empty(text, 3, dtype=shape.dtype),
        **guidance,
    }


def _unet(config: Any, shape: CallShape) -> dict[str, Any]:
    call: dict[str, Any] = {
        "sample": _new(shape, config.in_channels, shape.height, shape.width),
        "timestep": torch.empty(shape.rows),
        "encoder_hidden_states": _new(shape, CLIP_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        call["added_cond_kwargs"] = {"text_embeds": _new(shape, pooled), "time_ids": _new(shape, 6)}
    return call


# (arguments of a call, latents along the side of a token), for the classes that the recipes name. A plan says of any
# other class that its activations are not counted. FLUX.1's pipeline packs 2 x 2 latents before its denoiser sees them.
CALLS: Mapping[str, tuple[Call, Callable[[Any], int]]] = {
    "SD3Transformer2DModel": (_sd3, lambda config: int(config.patch_size)),
    "FluxTransformer2DModel": (_flux, lambda config: 2),
    "UNet2DConditionModel": (_unet, lambda config: 1),
}
TEXTS = ("encoder_hidden_states", "pooled_projections", "text_embeds")


def denoiser_call(denoiser: Any, shape: CallShape) -> dict[str, Any] | None:
    """Arguments of a call, made on the current default device; None for a class that is not in ``CALLS``."""
    row = CALLS.get(type(denoiser).__name__)
    return None if row is None else row[0](denoiser.config, shape)


def token_grid(denoiser: Any, shape: CallShape) -> tuple[int, int]:
    """(H, W) of the image tokens of such a call; rules of ``grids`` may read ids, which have no values here."""
    side = CALLS[type(denoiser).__name__][1](denoiser.config)
    return shape.height // side, shape.width // side


def text_bytes(call: Mapping[str, Any]) -> int:
    """Bytes of the embeddings of one row of a call."""
    flat = {**call, **call.get("added_cond_kwargs", {})}
    texts = [flat[name] for name in TEXTS if name in flat]
    return sum(t[0].numel() * t.element_size() for t in texts)


def _new(shape: CallShape, *size: int) -> torch.Tensor:
    return torch.empty(shape.rows, *size, dtype=shape.dtype)
