"""The reward of tinyworld: a small CLIP, trained on images with known faults.

Faults take latents or images and a severity in [0, 1] per image. The quality of the result is measured afterwards, as
the distance to the image without the fault.
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

Fault = Callable[[Tensor, Tensor, np.random.Generator], Tensor]

CAPTIONS_PER_STEP = 32
RMS_SCALE = 8.0  # root mean square pixel error (of 255) at which quality has fallen to 1/e


def _noise_like(x: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))


def latent_noise(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Add noise, as when denoising stops early: x_t = (1 - t) z + t eps with t up to 0.5."""
    t = 0.5 * severity_B.view(-1, 1, 1, 1)
    return (1 - t) * z + t * _noise_like(z, rng)


def ghost(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Blend with another scene, as when large early steps average over several images."""
    other = z[torch.from_numpy(rng.permutation(len(z)))]
    a = 0.5 * severity_B.view(-1, 1, 1, 1)
    return (1 - a) * z + a * other


def fade(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Move latents towards their mean on a random half of the places, which makes faint, half-decided objects."""
    where = F.interpolate(torch.from_numpy(rng.random((len(z), 1, 4, 4), dtype=np.float32)), scale_factor=2)
    a = 0.8 * severity_B.view(-1, 1, 1, 1) * (where > 0.5)
    return (1 - a) * z + a * z.mean(dim=(0, 2, 3), keepdim=True)


def pixel_noise(x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Add white noise to pixels in [-1, 1], standard deviation up to 0.35."""
    return x + 0.35 * severity_B.view(-1, 1, 1, 1) * _noise_like(x, rng)


def blur(x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Blend the image with its blurred copy (a 7 x 7 box, applied twice)."""
    soft = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    soft = F.avg_pool2d(F.pad(soft, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    a = severity_B.view(-1, 1, 1, 1)
    return (1 - a) * x + a * soft


LATENT_FAULTS: tuple[Fault, ...] = (latent_noise, ghost, fade)

PIXEL_FAULTS: tuple[Fault, ...] = (pixel_noise, blur)


def apply_mixture(faults: tuple[Fault, ...], x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Apply one of the faults to each image, drawn evenly."""
    which = torch.from_numpy(rng.integers(len(faults), size=len(x)))
    out = x.clone()
    for i, fault in enumerate(faults):
        rows = which == i
        out[rows] = fault(x, severity_B, rng)[rows]
    return out


def make_clip() -> CLIPModel:
    """Create an untrained ``CLIPModel`` for 64 x 64 images in patches of 8 (1.6 M parameters)."""
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
    """Compute the quality in (0, 1] from the root mean square error (0 to 255) to the image without faults.

    The function is a bell. Invisible errors cost nothing, so that a finished image is not worth another step.
    """
    return torch.exp(-((rms_B / RMS_SCALE) ** 2))


@dataclass(frozen=True)
class FaultyPool:
    """Decoded images of M scenes, each with two kinds of faults.

    Attributes:
        corrupted: Images with faults in their latents, uint8 (M, 3, 64, 64).
        corrupted_quality: Their quality, (M,), in (0, 1].
        unfinished: Images of too few denoising steps, uint8 (M, 3, 64, 64).
        unfinished_quality: Their quality, (M,), in (0, 1].
    """

    corrupted: Tensor
    corrupted_quality: Tensor
    unfinished: Tensor
    unfinished_quality: Tensor


def faulty_pool(
    vae: AutoencoderKL, model: TextToLatent, scenes: Sequence[Scene], latents: Tensor, seed: int, folder: Path
) -> FaultyPool:
    """Compute the images, or read them from ``folder``, because computing takes minutes."""
    path = folder / f"faulty-{seed}.safetensors"
    if path.exists():
        return FaultyPool(**load_tensors(path)[0])
    parts: dict[str, list[Tensor]] = {f.name: [] for f in fields(FaultyPool)}
    for step, first in enumerate(tqdm(range(0, len(latents), 64), desc="faulty images", dynamic_ncols=True)):
        rng = generator(seed, "faults", step)
        z = latents[first : first + 64].float()
        clean = decode(vae, z).clamp(-1, 1)
        # One in three has no fault, so that the reward learns what good images of this decoder look like.
        severity = torch.from_numpy(np.maximum(0, rng.uniform(-0.5, 1, size=len(z))).astype(np.float32))
        for name, faulty_z in (
            ("corrupted", apply_mixture(LATENT_FAULTS, z, severity, rng)),
            ("unfinished", unfinished(model, scenes[first : first + 64], z, rng)),
        ):
            faulty = decode(vae, faulty_z).clamp(-1, 1)
            parts[name].append(((faulty + 1) * 127.5).round().byte())
            parts[f"{name}_quality"].append(_quality_against(faulty, clean))
    pool = {name: torch.cat(part) for name, part in parts.items()}
    save_tensors(path, pool)
    return FaultyPool(**pool)


@torch.no_grad()
def unfinished(model: TextToLatent, scenes: Sequence[Scene], z: Tensor, rng: np.random.Generator) -> Tensor:
    """Denoise in too few steps: noise latents to a time in [0.6, 0.98], then make one or two Euler steps to 0.

    The caption describes as much of the scene as fits, and the noised latents contain the rest, so that the image
    without faults is known. The result has the faults of images with few steps: averages over what was not decided.
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


def _quality_against(faulty: Tensor, clean: Tensor) -> Tensor:
    return quality(127.5 * (faulty - clean).square().mean(dim=(1, 2, 3)).sqrt())


def _rendered(scenes: list[Scene], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rendered images with faults in their pixels, in [-1, 1], and their quality."""
    clean = to_unit_range(np.stack([render(s) for s in scenes]))
    severity = torch.from_numpy(np.maximum(0, rng.uniform(-1, 1, size=len(scenes))).astype(np.float32))
    faulty = apply_mixture(PIXEL_FAULTS, clean, severity, rng).clamp(-1, 1)
    return faulty, _quality_against(faulty, clean)


def train_preference(scenes: Sequence[Scene], pool: FaultyPool, plan: FitPlan, folder: Path, seed: int) -> CLIPModel:
    """Regress cosines on accuracy x quality, with two decoded images and an edited render per caption."""
    torch.manual_seed(seed)
    model = make_clip()

    def loss_fn(step: int) -> Tensor:
        rng = generator(seed, "preference", step)
        rows = torch.from_numpy(rng.integers(len(pool.corrupted), size=CAPTIONS_PER_STEP))
        chosen = [scenes[r] for r in rows.tolist()]
        # Half of the captions are near misses of the decoded images, so that those are read as closely as renders.
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
        # All pairs of image and caption teach the meaning of words. The images of a caption (near misses) teach
        # the fine differences that occur in training, and weigh more.
        images = torch.arange(len(scenes_B), dtype=torch.int64, device="cpu")
        paired = error[images, images % CAPTIONS_PER_STEP]
        return 0.3 * error.mean() + 0.7 * paired.mean()

    fit("preference", model, loss_fn, plan, folder)
    return model


def save_preference(model: CLIPModel, folder: Path) -> None:
    """Write model, tokenizer and preprocessing, as ``ClipReward.from_folder`` reads them."""
    model.half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    # As a file, because the class that writes it has different names in transformers 4 and 5.
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 1 / 255}
    processor = {"image_processor_type": "CLIPImageProcessor", **steps, **sizes, **numbers}
    write_json(folder / "preprocessor_config.json", processor)
