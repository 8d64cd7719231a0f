"""The denoiser of tinyworld: a small real SD3 transformer and two real CLIP text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tpdm.tinyworld.build.autoencoder import LATENT_CHANNELS, encode
from tpdm.tinyworld.build.fit import FitPlan, fit
from tpdm.tinyworld.captions import generator, scene_batch
from tpdm.tinyworld.grammar import Scene, describe
from tpdm.tinyworld.tokenizer import MAX_TOKENS, encode_words, end_id, start_id, vocabulary

TEXT_WIDTHS = (64, 96)
WIDTH, HEADS, BLOCKS = 160, 5, 6
BATCH = 128
CAPTION_DROPOUT = 0.1


def make_text_encoder(width: int, layers: int = 3) -> CLIPTextModelWithProjection:
    """Create a small CLIP text encoder with tinyworld's vocabulary. The pipeline reads its last but one layer."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary()),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=start_id(),
            eos_token_id=end_id(),
            pad_token_id=end_id(),
        )
    )


def make_transformer() -> SD3Transformer2DModel:
    """Create an ``SD3Transformer2DModel`` with 16 image tokens for 64 x 64 pixels (5.4 M parameters)."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=BLOCKS,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        caption_projection_dim=WIDTH,
        joint_attention_dim=sum(TEXT_WIDTHS),
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=16,
    )


class TextToLatent(nn.Module):
    """Text encoders and denoiser, called as the SD3 pipeline calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleList(make_text_encoder(w) for w in TEXT_WIDTHS)
        self.transformer = make_transformer()

    def forward(self, x_BCHW: Tensor, t_B: Tensor, ids_BN: Tensor) -> Tensor:
        """Compute the velocity (B, C, H, W) at times t in [0, 1] for token ids (B, 32)."""
        outputs = [encoder(ids_BN, output_hidden_states=True) for encoder in self.text]
        return self.transformer(
            hidden_states=x_BCHW,
            encoder_hidden_states=torch.cat([o.hidden_states[-2] for o in outputs], dim=-1),
            pooled_projections=torch.cat([o.text_embeds for o in outputs], dim=-1),
            timestep=1000 * t_B,
            return_dict=False,
        )[0]


def latent_cache(vae: AutoencoderKL, size: int, seed: int, folder: Path) -> tuple[list[Scene], Tensor]:
    """Return ``size`` scenes and their latents (fp16), stored on disk because encoding takes minutes."""
    from tpdm.core.io import load_tensors, save_tensors

    path, batches = folder / f"latents-{seed}-{size}.safetensors", range(size // 256)
    scenes: list[Scene] = []
    if path.exists():
        for step in batches:
            scenes += scene_batch(generator(seed, "latents", step), 256)[0]
        return scenes, load_tensors(path)[0]["latents"]
    parts = []
    for step in tqdm(batches, desc="encoding scenes", dynamic_ncols=True):
        batch, images = scene_batch(generator(seed, "latents", step), 256)
        scenes += batch
        parts.append(torch.cat([encode(vae, chunk) for chunk in images.split(64)]).half())
    latents = torch.cat(parts)
    save_tensors(path, {"latents": latents})
    return scenes, latents


def captions_for(scenes: Sequence[Scene], rng: np.random.Generator) -> list[str]:
    """Describe each scene. One caption in ten is empty, for classifier-free guidance."""
    return ["" if rng.random() < CAPTION_DROPOUT else describe(s, rng).caption() for s in scenes]


def train_denoiser(
    vae: AutoencoderKL, plan: FitPlan, folder: Path, seed: int, scenes_cached: int, compiled: bool
) -> TextToLatent:
    """Train by flow matching on cached latents: x_t = (1 - t) x_0 + t eps, target eps - x_0, t logit-normal."""
    torch.manual_seed(seed)
    model = TextToLatent()
    scenes, latents = latent_cache(vae, scenes_cached, seed, folder)
    network = torch.compile(model) if compiled else model

    def loss_fn(step: int) -> Tensor:
        rng = generator(seed, "denoiser", step)
        rows = rng.integers(len(scenes), size=BATCH)
        ids = encode_words(captions_for([scenes[r] for r in rows], rng))
        x0 = latents[torch.from_numpy(rows)].float()
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        t = torch.sigmoid(torch.from_numpy(rng.standard_normal(BATCH, dtype=np.float32)))
        t_B111 = t.view(-1, 1, 1, 1)
        velocity = network((1 - t_B111) * x0 + t_B111 * noise, t, ids)
        return (velocity - (noise - x0)).square().mean()

    fit("denoiser", model, loss_fn, plan, folder)
    return model
