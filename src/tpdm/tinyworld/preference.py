"""The reward of tinyworld: a small real ``CLIPModel`` taught to score content and picture quality at once.

Its cosine is regressed on a utility in [0, 1] that is known by construction: the share of the caption that the scene
in the picture fulfils, times how close the picture is to its faultless self. No picture of the denoiser and no
reading of the scene reader goes into it, so both remain independent judges.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tpdm.files import load_tensors, save_tensors
from tpdm.tinyworld.autoencoder import decode
from tpdm.tinyworld.corruption import LATENT_FAULTS, PIXEL_FAULTS, apply_mixture
from tpdm.tinyworld.data import generator, to_unit_range
from tpdm.tinyworld.fit import FitPlan, fit
from tpdm.tinyworld.grammar import Scene, describe, perturb
from tpdm.tinyworld.matching import accuracy
from tpdm.tinyworld.render import render
from tpdm.tinyworld.tokenizer import MAX_TOKENS, encode_words, end_id, make_tokenizer, start_id, vocabulary

CAPTIONS_PER_STEP = 32
RMS_SCALE = 12.0  # root mean square pixel error (of 255) at which quality has fallen to 1/e


def make_clip() -> CLIPModel:
    """An untrained ``CLIPModel`` over 64 x 64 pictures in patches of 8 (1.6 M parameters)."""
    text = CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        intermediate_size=512,
        projection_dim=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=start_id(),
        eos_token_id=end_id(),
        pad_token_id=end_id(),
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=192))


def quality(rms_B: Tensor) -> Tensor:
    """Picture quality in (0, 1] from the root mean square error (0 to 255) against the faultless picture."""
    return torch.exp(-rms_B / RMS_SCALE)


def faulty_pool(vae: AutoencoderKL, latents: Tensor, seed: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Decoded pictures with faults in their latents: (uint8 (M, 3, 64, 64), quality (M,)) of M scenes."""
    path = folder / f"faulty-{seed}.safetensors"
    if path.exists():
        pool = load_tensors(path)[0]
        return pool["pictures"], pool["quality"]
    pictures, qualities = [], []
    chunks = latents.float().split(64)
    for step, z in enumerate(tqdm(chunks, desc="faulty pictures", dynamic_ncols=True)):
        rng = generator(seed, "faults", step)
        # One in three is left whole, so that the reward knows what good pictures of this decoder look like.
        severity = torch.from_numpy(np.maximum(0, rng.uniform(-0.5, 1, size=len(z))).astype(np.float32))
        clean = decode(vae, z).clamp(-1, 1)
        faulty = decode(vae, apply_mixture(LATENT_FAULTS, z, severity, rng)).clamp(-1, 1)
        qualities.append(quality(127.5 * (faulty - clean).square().mean(dim=(1, 2, 3)).sqrt()))
        pictures.append(((faulty + 1) * 127.5).round().byte())
    pool = {"pictures": torch.cat(pictures), "quality": torch.cat(qualities)}
    save_tensors(path, pool)
    return pool["pictures"], pool["quality"]


def _rendered(scenes: list[Scene], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Renders with faults in their pixels, in [-1, 1], and their quality."""
    clean = to_unit_range(np.stack([render(s) for s in scenes]))
    severity = torch.from_numpy(np.maximum(0, rng.uniform(-1, 1, size=len(scenes))).astype(np.float32))
    faulty = apply_mixture(PIXEL_FAULTS, clean, severity, rng).clamp(-1, 1)
    return faulty, quality(127.5 * (faulty - clean).square().mean(dim=(1, 2, 3)).sqrt())


def train_preference(
    scenes: list[Scene], pictures: Tensor, picture_quality: Tensor, plan: FitPlan, folder: Path, seed: int
) -> CLIPModel:
    """Regresses cosines on utility = accuracy x quality; per caption one decoded and two edited pictures."""
    torch.manual_seed(seed)
    model = make_clip()

    def loss_fn(step: int) -> Tensor:
        rng = generator(seed, "preference", step)
        rows = rng.integers(len(pictures), size=CAPTIONS_PER_STEP)
        chosen = [scenes[r] for r in rows]
        asked = [describe(s, rng) for s in chosen]
        edited = [perturb(s, rng) for s in (*chosen, *chosen)]
        drawn, drawn_quality = _rendered(edited, rng)
        decoded = pictures[torch.from_numpy(rows)].float() / 127.5 - 1
        scenes_B = [*chosen, *edited]
        fulfilled = [[accuracy(a, s) for a in asked] for s in scenes_B]
        q = torch.cat([picture_quality[torch.from_numpy(rows)], drawn_quality])
        utility = torch.tensor(fulfilled) * q[:, None]
        output = model(pixel_values=torch.cat([decoded, drawn]), input_ids=encode_words([a.caption() for a in asked]))
        error = (output.image_embeds @ output.text_embeds.T - utility).square()
        # Every picture against every caption teaches which word means what; the pictures made for a caption (near
        # misses) teach the fine differences that training will meet, and weigh as much.
        own = error[torch.arange(len(scenes_B)), torch.arange(CAPTIONS_PER_STEP).repeat(3)]
        return 0.5 * error.mean() + 0.5 * own.mean()

    fit("preference", model, loss_fn, plan, folder)
    return model


def save_preference(model: CLIPModel, folder: Path) -> None:
    """Writes model, tokenizer and preprocessing, as ``ClipReward.from_folder`` reads them."""
    model.half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    size = {"shortest_edge": 64}
    crop = {"height": 64, "width": 64}
    mean = [0.5, 0.5, 0.5]
    CLIPImageProcessorPil(size=size, crop_size=crop, image_mean=mean, image_std=mean).save_pretrained(folder)
