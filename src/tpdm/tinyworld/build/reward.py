"""Ways in which a picture goes wrong, for teaching the reward what quality is.

Every function takes latents or pictures and a severity in [0, 1] per image; the severity is only a knob: how bad the
result is gets measured afterwards, as the distance to the picture without the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tpdm.core.io import load_tensors, save_tensors, write_json
from tpdm.tinyworld.build.autoencoder import decode
from tpdm.tinyworld.build.denoiser import TextToLatent
from tpdm.tinyworld.build.fit import FitPlan, fit
from tpdm.tinyworld.captions import generator, to_unit_range
from tpdm.tinyworld.grammar import Scene, describe, perturb
from tpdm.tinyworld.render import render
from tpdm.tinyworld.scene_reader import accuracy
from tpdm.tinyworld.tokenizer import MAX_TOKENS, encode_words, end_id, make_tokenizer, start_id, vocabulary


def _noise_like(x: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))


def latent_noise(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Left-over noise, as when denoising stops early: x_t = (1 - t) z + t eps with t up to 0.5."""
    t = 0.5 * severity_B.view(-1, 1, 1, 1)
    return (1 - t) * z + t * _noise_like(z, rng)


def ghost(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """A blend with another scene, as when large early steps average over several pictures."""
    other = z[torch.from_numpy(rng.permutation(len(z)))]
    a = 0.5 * severity_B.view(-1, 1, 1, 1)
    return (1 - a) * z + a * other


def fade(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Latents pulled towards their mean over a random half of the places: washed-out, half-decided objects."""
    where = F.interpolate(torch.from_numpy(rng.random((len(z), 1, 4, 4), dtype=np.float32)), scale_factor=2)
    a = 0.8 * severity_B.view(-1, 1, 1, 1) * (where > 0.5)
    return (1 - a) * z + a * z.mean(dim=(0, 2, 3), keepdim=True)


def pixel_noise(x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """White noise on pixels in [-1, 1], standard deviation up to 0.35."""
    return x + 0.35 * severity_B.view(-1, 1, 1, 1) * _noise_like(x, rng)


def blur(x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """A blend of the picture with itself blurred by an 7 x 7 box, applied twice."""
    soft = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    soft = F.avg_pool2d(F.pad(soft, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    a = severity_B.view(-1, 1, 1, 1)
    return (1 - a) * x + a * soft


Fault = Callable[[Tensor, Tensor, np.random.Generator], Tensor]

LATENT_FAULTS: tuple[Fault, ...] = (latent_noise, ghost, fade)

PIXEL_FAULTS: tuple[Fault, ...] = (pixel_noise, blur)


def apply_mixture(faults: tuple[Fault, ...], x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image gets one of the faults, drawn evenly."""
    which = torch.from_numpy(rng.integers(len(faults), size=len(x)))
    out = x.clone()
    for i, fault in enumerate(faults):
        rows = which == i
        out[rows] = fault(x, severity_B, rng)[rows]
    return out


CAPTIONS_PER_STEP = 32

RMS_SCALE = 8.0  # root mean square pixel error (of 255) at which quality has fallen to 1/e


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
    """Picture quality in (0, 1] from the root mean square error (0 to 255) against the faultless picture.

    A bell: errors that nobody sees cost nothing, so that a picture which is done is not worth another step.
    """
    return torch.exp(-((rms_B / RMS_SCALE) ** 2))


@dataclass(frozen=True)
class FaultyPool:
    """Decoded pictures of M scenes, each with two kinds of faults.

    Attributes:
        corrupted, unfinished: uint8 (M, 3, 64, 64): faults put into the latents, and denoising that took too few steps.
        corrupted_quality, unfinished_quality: (M,), in (0, 1].
    """

    corrupted: Tensor
    corrupted_quality: Tensor
    unfinished: Tensor
    unfinished_quality: Tensor


def faulty_pool(
    vae: AutoencoderKL, model: TextToLatent, scenes: Sequence[Scene], latents: Tensor, seed: int, folder: Path
) -> FaultyPool:
    """Makes the pictures (or reads them from ``folder``, because it takes minutes)."""
    path = folder / f"faulty-{seed}.safetensors"
    if path.exists():
        return FaultyPool(**load_tensors(path)[0])
    parts: dict[str, list[Tensor]] = {f.name: [] for f in fields(FaultyPool)}
    for step, first in enumerate(tqdm(range(0, len(latents), 64), desc="faulty pictures", dynamic_ncols=True)):
        rng = generator(seed, "faults", step)
        z = latents[first : first + 64].float()
        clean = decode(vae, z).clamp(-1, 1)
        # One in three is left whole, so that the reward knows what good pictures of this decoder look like.
        severity = torch.from_numpy(np.maximum(0, rng.uniform(-0.5, 1, size=len(z))).astype(np.float32))
        for name, faulty_z in (
            ("corrupted", apply_mixture(LATENT_FAULTS, z, severity, rng)),
            ("unfinished", unfinished(model, scenes[first : first + 64], z, rng)),
        ):
            faulty = decode(vae, faulty_z).clamp(-1, 1)
            parts[name].append(((faulty + 1) * 127.5).round().byte())
            parts[f"{name}_quality"].append(_quality_beside(faulty, clean))
    pool = {name: torch.cat(part) for name, part in parts.items()}
    save_tensors(path, pool)
    return FaultyPool(**pool)


@torch.no_grad()
def unfinished(model: TextToLatent, scenes: Sequence[Scene], z: Tensor, rng: np.random.Generator) -> Tensor:
    """What too few steps make of latents: noised to a time in [0.6, 0.98], then one or two Euler steps to 0.

    The caption tells as much of the scene as fits, and the noised latents the rest, so that the faultless picture is
    known. What comes out is what few-step pictures suffer from: averages over what the denoiser had not decided.
    """
    t = torch.from_numpy(rng.uniform(0.6, 0.98, size=len(z)).astype(np.float32))
    middle = torch.where(torch.from_numpy(rng.random(len(z)) < 0.5), t / 2, 0.0)
    ids = encode_words([describe(s, rng, keep=1.0).caption() for s in scenes])
    noise = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32))
    t_B, middle_B = t.view(-1, 1, 1, 1), middle.view(-1, 1, 1, 1)
    x = (1 - t_B) * z + t_B * noise
    x = x + (middle_B - t_B) * model(x, t, ids)
    second = middle > 0
    x[second] = x[second] - middle_B[second] * model(x[second], middle[second], ids[second])
    return x


def _quality_beside(faulty: Tensor, clean: Tensor) -> Tensor:
    return quality(127.5 * (faulty - clean).square().mean(dim=(1, 2, 3)).sqrt())


def _rendered(scenes: list[Scene], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Renders with faults in their pixels, in [-1, 1], and their quality."""
    clean = to_unit_range(np.stack([render(s) for s in scenes]))
    severity = torch.from_numpy(np.maximum(0, rng.uniform(-1, 1, size=len(scenes))).astype(np.float32))
    faulty = apply_mixture(PIXEL_FAULTS, clean, severity, rng).clamp(-1, 1)
    return faulty, _quality_beside(faulty, clean)


def train_preference(scenes: Sequence[Scene], pool: FaultyPool, plan: FitPlan, folder: Path, seed: int) -> CLIPModel:
    """Regresses cosines on utility = accuracy x quality; per caption two decoded pictures and an edited render."""
    torch.manual_seed(seed)
    model = make_clip()

    def loss_fn(step: int) -> Tensor:
        rng = generator(seed, "preference", step)
        rows = torch.from_numpy(rng.integers(len(pool.corrupted), size=CAPTIONS_PER_STEP))
        chosen = [scenes[r] for r in rows.tolist()]
        # Half of the captions are near misses of the decoded pictures, so that those are read as closely as renders.
        meant = [perturb(s, rng) if rng.random() < 0.5 else s for s in chosen]
        asked = [describe(s, rng) for s in meant]
        edited = [perturb(s, rng) for s in meant]
        drawn, drawn_quality = _rendered(edited, rng)
        decoded = torch.cat([pool.corrupted[rows], pool.unfinished[rows]]).float() / 127.5 - 1
        scenes_B = [*chosen, *chosen, *edited]
        fulfilled = [[accuracy(a, s) for a in asked] for s in (*chosen, *edited)]
        fulfilled = fulfilled[:CAPTIONS_PER_STEP] + fulfilled
        q = torch.cat([pool.corrupted_quality[rows], pool.unfinished_quality[rows], drawn_quality])
        utility = torch.tensor(fulfilled, dtype=torch.float32, device="cpu") * q[:, None]
        output = model(pixel_values=torch.cat([decoded, drawn]), input_ids=encode_words([a.caption() for a in asked]))
        error = (output.image_embeds @ output.text_embeds.T - utility).square()
        # Every picture against every caption teaches which word means what; the pictures made for a caption (near
        # misses) teach the fine differences that training will meet, and weigh more.
        pictures = torch.arange(len(scenes_B), dtype=torch.int64, device="cpu")
        own = error[pictures, pictures % CAPTIONS_PER_STEP]
        return 0.3 * error.mean() + 0.7 * own.mean()

    fit("preference", model, loss_fn, plan, folder)
    return model


def save_preference(model: CLIPModel, folder: Path) -> None:
    """Writes model, tokenizer and preprocessing, as ``ClipReward.from_folder`` reads them."""
    model.half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    # As a file, for the class that writes it has another name in transformers 4 and 5.
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 1 / 255}
    processor = {"image_processor_type": "CLIPImageProcessor", **steps, **sizes, **numbers}
    write_json(folder / "preprocessor_config.json", processor)
