"""Build of the embedded model: autoencoder, denoiser and reward. It takes hours on two cores, and is resumable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from tpdm.core.errors import ConfigError
from tpdm.core.io import expand, write_json
from tpdm.tinyworld.build.autoencoder import train_autoencoder
from tpdm.tinyworld.build.denoiser import TextToLatent, latent_cache, train_denoiser
from tpdm.tinyworld.build.fit import FitPlan
from tpdm.tinyworld.build.reward import faulty_pool, save_preference, train_preference
from tpdm.tinyworld.tokenizer import make_tokenizer, write_vocabulary

ORIGIN = {"_name_or_path", "is_local", "local_files_only"}  # keys of config files


@dataclass(frozen=True)
class BuildPlan:
    """Lengths of the stages.

    Attributes:
        autoencoder: Training of the autoencoder.
        denoiser: Training of the denoiser.
        preference: Training of the reward.
        scenes: Number of images whose latents train the denoiser, a multiple of 256.
        pool: Number of these images that also get faults, to train the reward.
        bf16: Whether to use autocast for the autoencoder. It is faster on processors with AMX.
        compiled: Whether to use ``torch.compile`` for the denoiser. It needs a C++ compiler on the CPU.
    """

    autoencoder: FitPlan = field(default_factory=lambda: FitPlan(steps=4_800, lr=2e-3, ema=0.995))
    denoiser: FitPlan = field(default_factory=lambda: FitPlan(steps=6_000, lr=2e-3, ema=0.998, muon=True))
    preference: FitPlan = field(default_factory=lambda: FitPlan(steps=10_000, lr=1.2e-3, ema=0.995, muon=True))
    scenes: int = 81_920
    pool: int = 12_288
    bf16: bool = False
    compiled: bool = False


def quick_plan() -> BuildPlan:
    """Return a plan with a few steps per stage, to test that the build runs. The result is of no use."""
    short = replace(FitPlan(steps=4, lr=1e-3), save_every=2)
    return BuildPlan(autoencoder=short, denoiser=short, preference=short, scenes=256, pool=256)


def build(out: Path, seed: int = 0, quick: bool = False, bf16: bool = False, compiled: bool = False) -> Path:
    """Train all parts, or continue an interrupted build, and write the weights.

    Args:
        out: Folder. ``out/work`` gets checkpoints and logs, ``out/weights`` the result.
        seed: Seed of the build, >= 0.
        quick: Whether to make only a few steps.
        bf16: See :class:`BuildPlan`.
        compiled: See :class:`BuildPlan`.

    Returns:
        ``out/weights``, which can replace the shipped weights.

    Raises:
        ConfigError: ``out`` contains a build with another plan or seed, or torch has no Muon.
    """
    if not quick and not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"torch {torch.__version__} has no Muon. It must be torch>=2.9. Run pip install -U torch.")
    plan = replace(quick_plan() if quick else BuildPlan(), bf16=bf16, compiled=compiled)
    out = expand(out)
    work, weights = out / "work", out / "weights"
    work.mkdir(parents=True, exist_ok=True)
    _same_plan(work / "plan.json", {"seed": seed, **asdict(plan)})
    vae = _autoencoder(plan, work, seed)
    model = train_denoiser(vae, plan.denoiser, work, seed, plan.scenes, plan.compiled)
    scenes, latents = latent_cache(vae, plan.scenes, seed, work)
    pool = faulty_pool(vae, model, scenes[: plan.pool], latents[: plan.pool], seed, work)
    clip = train_preference(scenes, pool, plan.preference, work, seed)
    save_weights(vae, model, clip, weights)
    return weights


def save_weights(vae: AutoencoderKL, model: TextToLatent, clip: torch.nn.Module, weights: Path) -> None:
    """Write ``weights/pipeline`` and ``weights/reward`` in fp16."""
    assemble(vae.half(), model.half()).save_pretrained(weights / "pipeline", safe_serialization=True)
    save_preference(clip, weights / "reward")
    for path in weights.rglob("*config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        # The libraries record where a part was loaded from, which is private to this machine.
        if private := config.keys() & ORIGIN:
            write_json(path, {key: value for key, value in config.items() if key not in private})
        if path.name == "tokenizer_config.json":
            write_vocabulary(path.parent)  # for other versions of transformers than the one that saved


def _autoencoder(plan: BuildPlan, work: Path, seed: int) -> AutoencoderKL:
    done = work / "autoencoder"
    if not (done / "config.json").exists():
        train_autoencoder(plan.autoencoder, work, seed, plan.bf16).save_pretrained(done)
    return AutoencoderKL.from_pretrained(done)


def _same_plan(path: Path, plan: dict[str, object]) -> None:
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != plan:
        raise ConfigError(
            f"{path} belongs to a build with another plan or seed. Choose another --out, or remove {path.parent}."
        )
    write_json(path, plan)


def assemble(vae: AutoencoderKL, model: TextToLatent) -> StableDiffusion3Pipeline:
    """Create the pipeline, with the scheduler of Stable Diffusion 3 (shift 3)."""
    return StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=model.text[0],
        tokenizer=make_tokenizer(),
        text_encoder_2=model.text[1],
        tokenizer_2=make_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
