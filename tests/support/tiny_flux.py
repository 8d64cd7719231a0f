"""A real FluxPipeline with random weights and no text encoders: call it with ``text(images, seed)``."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from tests.support.tiny_sd3 import make_vae

WIDTH = 16


def make_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def make_tiny_flux() -> FluxPipeline:
    torch.manual_seed(0)
    vae: AutoencoderKL = make_vae()
    pipe = FluxPipeline(
        transformer=make_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text(images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Stand-in prompt embeddings (images, 5, 16) and pooled ones, one prompt per image."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(images, 5, WIDTH, generator=generator),
        "pooled_prompt_embeds": torch.randn(images, WIDTH, generator=generator),
    }
