"""The committed weights have the properties that the documentation states."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tpdm.core.grids import uniform
from tpdm.core.io import to_uint8
from tpdm.evaluation.baselines import default_schedule
from tpdm.evaluation.statistics import paired_bootstrap
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.policies.fixed import FixedSchedule
from tpdm.rewards.loading import load_reward
from tpdm.tinyworld.build.reward import blur, latent_noise, pixel_noise
from tpdm.tinyworld.builtin import WEIGHTS
from tpdm.tinyworld.captions import generator, to_unit_range
from tpdm.tinyworld.grammar import COLORS, describe, sample_scene
from tpdm.tinyworld.render import render
from tpdm.tinyworld.scene_reader import matched_objects, read_scenes

IMAGES = 48


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tinyworld", device="cpu")


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(7)
    return [sample_scene(rng, 3) for _ in range(IMAGES)]


@pytest.fixture(scope="module")
def asked(scenes):
    rng = np.random.default_rng(8)
    return [describe(s, rng, keep=0.75) for s in scenes]


@pytest.fixture(scope="module")
def pictures(pipe, asked):
    """At the pipeline's default schedule of 28, float in [0, 1]."""
    fixed = attach(pipe, default_schedule(pipe, 28, call_defaults("tinyworld")), defaults=call_defaults("tinyworld"))
    return fixed([a.caption() for a in asked], seeds=list(range(IMAGES)), output_type="pt").images


def test_the_weights_are_small():
    size = sum(f.stat().st_size for f in WEIGHTS.rglob("*.safetensors"))
    assert size <= 24 * 2**20


def test_a_fixed_list_is_the_stock_pipeline(pipe):
    prompts, seeds = ["large red circle top left on navy", "object"], [0, 1]
    arguments = {**call_defaults("tinyworld"), "output_type": "latent"}
    driven = attach(pipe, default_schedule(pipe, 6, call_defaults("tinyworld")))(
        prompts, seeds=seeds, **arguments
    ).images
    noise = [torch.Generator().manual_seed(s) for s in seeds]
    stock = pipe(prompts, num_inference_steps=6, generator=noise, **arguments).images
    assert (driven - stock).abs().max() == 0.0


def test_objects_of_three_object_captions_are_right(asked, pictures):
    readings = read_scenes(to_uint8(pictures))
    right = [matched_objects(a.objects, r.scene.objects) for a, r in zip(asked, readings, strict=True)]
    assert sum(right) / sum(len(a.objects) for a in asked) >= 0.8


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_six_schedules_in_one_batch_are_the_six_alone(pipe, guidance):
    lists = [uniform(n).tolist() for n in (3, 4, 5, 6, 8, 10)]
    prompts = [f"large {c} circle top left on black" for c in list(COLORS)[:6]]
    arguments = {**call_defaults("tinyworld"), "output_type": "latent", "guidance_scale": guidance}
    together = attach(pipe, FixedSchedule(lists))(prompts, seeds=list(range(6)), **arguments)
    assert together.steps == [3, 4, 5, 6, 8, 10]
    assert together.nfe_rows == (2 if guidance > 1 else 1) * sum(together.steps)
    for i, times in enumerate(lists):
        alone = attach(pipe, FixedSchedule(times))(prompts[i], seeds=[i], **arguments)
        assert alone.steps == together.steps[i : i + 1]
        assert (alone.images[0] - together.images[i]).abs().max() <= 2e-5


@pytest.mark.parametrize("fault", ["blur", "pixel noise", "left-over latent noise", "few steps", "wrong content"])
def test_the_reward_falls(pipe, scenes, asked, pictures, fault):
    rng, strength = generator(0, fault, 0), torch.full((IMAGES,), 0.6)
    reward, captions = load_reward("tinyworld"), [a.caption() for a in asked]
    clean = (to_unit_range(np.stack([render(s) for s in scenes])) + 1) / 2
    if fault == "blur":
        good, bad = clean, (blur(2 * clean - 1, strength, rng) + 1) / 2
    elif fault == "pixel noise":
        good, bad = clean, (pixel_noise(2 * clean - 1, strength, rng).clamp(-1, 1) + 1) / 2
    elif fault == "left-over latent noise":
        good = clean
        with torch.no_grad():
            latents = latent_noise(pipe.vae.encode(2 * clean - 1).latent_dist.mean, strength, rng)
            bad = (pipe.vae.decode(latents).sample.clamp(-1, 1) + 1) / 2
    elif fault == "few steps":
        short = attach(pipe, FixedSchedule(uniform(2).tolist()), defaults=call_defaults("tinyworld"))
        good, bad = pictures, short(captions, seeds=list(range(IMAGES)), output_type="pt").images
    else:
        others = [replace(s, objects=sample_scene(rng, 3).objects) for s in scenes]
        good, bad = clean, (to_unit_range(np.stack([render(s) for s in others])) + 1) / 2
    difference = reward.score(good, captions) - reward.score(bad, captions)
    _, low, _ = paired_bootstrap(difference.double().numpy())
    assert low > 0
