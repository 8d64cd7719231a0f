"""The variational autoencoder of tinyworld: 64 x 64 x 3 pixels to 8 x 8 x 8 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from tpdm.tinyworld.build.fit import FitPlan, fit
from tpdm.tinyworld.captions import generator, scene_batch

LATENT_CHANNELS = 8
KL_WEIGHT = 3e-4
BATCH = 16
CROWD = 14  # objects in every second training image: with more sprites per image, fewer images are needed


def make_autoencoder() -> AutoencoderKL:
    """Create an untrained ``AutoencoderKL`` of tinyworld's shape (1.7 M parameters)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_autoencoder(plan: FitPlan, folder: Path, seed: int, bf16: bool) -> AutoencoderKL:
    """Train from scratch (or resume), and set the latent scale and shift from 1,024 new scenes."""
    torch.manual_seed(seed)
    vae = make_autoencoder().to(memory_format=torch.channels_last)

    def loss_fn(step: int) -> Tensor:
        rng = generator(seed, "autoencoder", step)
        _, sparse = scene_batch(rng, BATCH // 2)
        _, full = scene_batch(rng, BATCH // 2, count=CROWD)
        x = torch.cat([sparse, full]).to(memory_format=torch.channels_last)
        noise = torch.from_numpy(rng.standard_normal((BATCH, LATENT_CHANNELS, 8, 8), dtype=np.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            posterior = vae.encode(x).latent_dist
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        kl = posterior.kl().float().mean() / (LATENT_CHANNELS * 64)
        return F.l1_loss(decoded, x) + 2 * F.mse_loss(decoded, x) + KL_WEIGHT * kl

    fit("autoencoder", vae, loss_fn, plan, folder)
    _normalize_latents(vae, seed)
    return vae


@torch.no_grad()
def _normalize_latents(vae: AutoencoderKL, seed: int) -> None:
    _, x = scene_batch(generator(seed, "latent-scale", 0), 1024)
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in x.split(64)])
    vae.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 5), shift_factor=round(latents.mean().item(), 5)
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode images (B, 3, 64, 64) in [-1, 1] to normalized latents (B, 8, 8, 8), as the pipeline uses them."""
    return (vae.encode(images).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode normalized latents to images in [-1, 1], without clamping."""
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
