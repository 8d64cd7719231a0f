"""Denoisers, decoders and pipelines of published and of small shapes, with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel

from benchmarks.command import RESULTS
from tpdm.pipelines.loading.load import load_pipeline


def sd3(layers: int, heads: int, channels: int = 64, text: int = 4096, pooled: int = 2048, **more: Any) -> Any:
    """A denoiser of Stable Diffusion 3: 24 layers and heads are Medium's, 38 are SD3.5 Large's.

    Args:
        layers: Joint transformer blocks.
        heads: Attention heads.
        channels: Channels of each head.
        text: Width of the prompt embeddings.
        pooled: Width of the pooled prompt embeddings.
        more: Arguments that differ from the published 1024-pixel configuration.
    """
    sizes = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "pos_embed_max_size": 192}
    return SD3Transformer2DModel(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=channels,
        caption_projection_dim=channels * heads,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        **{**sizes, **more},
    )


def flux(layers: int = 19, single: int = 38, heads: int = 24) -> Any:
    """A denoiser of FLUX.1: FLUX.1-dev unless other numbers of blocks and heads are given."""
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=layers,
        num_single_layers=single,
        attention_head_dim=128,
        num_attention_heads=heads,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
    )


def autoencoder(channels: tuple[int, ...] = (128, 256, 512, 512), **more: Any) -> Any:
    """The autoencoder of SD3 and FLUX.1, or one with other ``channels`` of its levels."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **more,
    )


@dataclass(frozen=True)
class Shape:
    """A backbone: the embedded one, or a Stable Diffusion 3 of random weights between its text encoders.

    Attributes:
        layers: Layers of the denoiser; 0 keeps the embedded one.
        heads: Heads of the denoiser, 64 channels each.
        vae: Channels of the decoder's levels.
        size: Height and width of the images, arguments of the pipeline's call.
        dtype: Type of the weights.
    """

    layers: int = 0
    heads: int = 0
    vae: tuple[int, ...] = ()
    size: dict[str, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


EMBEDDED = Shape()
SMALL = Shape(12, 6, (8, 8, 8, 8), {"height": 128, "width": 128})
SD3_MEDIUM = Shape(24, 24, (128, 256, 512, 512), {"height": 1024, "width": 1024}, torch.bfloat16)
TINY = Shape(1, 1, (8, 8), {"height": 32, "width": 32})


def make_pipeline(shape: Shape, device: str) -> Any:
    """The embedded pipeline, with another denoiser and decoder if the shape has layers."""
    pipe = load_pipeline("tinyworld", device="cpu")
    if shape.layers:
        torch.manual_seed(0)
        embedded = pipe.transformer.config
        side = shape.size["height"] // 2 ** (len(shape.vae) - 1)
        widths = embedded.joint_attention_dim, embedded.pooled_projection_dim
        with torch.device(device):
            transformer = sd3(shape.layers, shape.heads, 64, *widths, sample_size=side)
            vae = autoencoder(shape.vae, norm_num_groups=8, shift_factor=0.0609, scaling_factor=1.5305)
        pipe = type(pipe)(**{**pipe.components, "transformer": transformer.eval(), "vae": vae.eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, shape.dtype)


def steps_taken() -> list[int]:
    """Steps of the demo's TPM on every held-out prompt of tinyworld, ascending."""
    curves = json.loads((RESULTS / "demo-curves.json").read_text(encoding="utf-8"))
    histogram = curves[0]["last_steps_histogram"]
    return sorted(int(n) for n, count in histogram.items() for _ in range(count))
