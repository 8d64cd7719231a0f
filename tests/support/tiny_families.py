"""Real pipelines of every family with random weights and no text encoders, each built in a fraction of a second.

They are called with prompt embeddings. Where the VAE is not a plain AutoencoderKL there is none: ask for latents.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from tests.support.tiny_flux import make_tiny_flux
from tests.support.tiny_sd3 import make_vae

WIDTH = 16
FLOW = {"shift": 3.0}
# Stable Diffusion's own scheduler.
DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def _pipe(name: str, scheduler: Any, **parts: Any) -> Any:
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe = getattr(diffusers, name)(scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _bare(name: str, transformer: Any, vae: Any = None) -> Any:
    """A flow pipeline of one text encoder, which is absent."""
    scheduler = FlowMatchEulerDiscreteScheduler(**FLOW)
    return _pipe(name, scheduler, transformer=transformer, vae=vae, text_encoder=None, tokenizer=None)


def make_sd3(**novelties: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=16,
        **novelties,
    )
    absent = dict.fromkeys([f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")])
    scheduler = FlowMatchEulerDiscreteScheduler(**FLOW)
    return _pipe("StableDiffusion3Pipeline", scheduler, transformer=transformer, vae=make_vae(), **absent)


def make_sd35() -> Any:
    """SD3.5-medium's two novelties: dual attention in the first layers, and normalized queries and keys."""
    return make_sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def make_schnell() -> Any:
    """FLUX.1 schnell: no guidance embedding."""
    pipe = make_tiny_flux()
    config = {**pipe.transformer.config, "guidance_embeds": False}
    pipe.register_modules(transformer=diffusers.FluxTransformer2DModel.from_config(config).eval())
    pipe.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    return pipe


def make_flux2() -> Any:
    return _bare(
        "Flux2Pipeline",
        diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        ),
    )


def make_qwen() -> Any:
    return _bare(
        "QwenImagePipeline",
        diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def make_sana() -> Any:
    return _bare(
        "SanaPipeline",
        diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=8,
        ),
    )


def make_lumina2() -> Any:
    return _bare(
        "Lumina2Pipeline",
        diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(64, 16, 16),
            cap_feat_dim=WIDTH,
        ),
        make_vae(),
    )


def make_z_image() -> Any:
    return _bare(
        "ZImagePipeline",
        diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=24,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 4, 4],
            axes_lens=[128, 32, 32],
        ),
        make_vae(),
    )


def make_wan() -> Any:
    return _bare(
        "WanPipeline",
        diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        ),
    )


def make_pixart(prediction: str = "epsilon") -> Any:
    """The transformer learns the variance too: twice the latents' channels, of which the pipeline takes half."""
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    scheduler = DDIMScheduler(**DIFFUSION, prediction_type=prediction)
    parts = {"transformer": transformer, "vae": make_vae(), "text_encoder": None, "tokenizer": None}
    return _pipe("PixArtSigmaPipeline", scheduler, **parts)


def make_unet(**options: Any) -> Any:
    usual = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    }
    return diffusers.UNet2DConditionModel(**{**usual, **options})


def make_sd15(prediction: str = "epsilon") -> Any:
    return _pipe(
        "StableDiffusionPipeline",
        DDIMScheduler(**DIFFUSION, prediction_type=prediction),
        unet=make_unet(),
        vae=make_vae(),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sdxl(prediction: str = "epsilon") -> Any:
    # Six numbers (sizes and crop) of 8 channels each, and the pooled text.
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return _pipe(
        "StableDiffusionXLPipeline",
        DDIMScheduler(**DIFFUSION, prediction_type=prediction),
        unet=make_unet(**extra, projection_class_embeddings_input_dim=6 * 8 + WIDTH),
        vae=make_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
