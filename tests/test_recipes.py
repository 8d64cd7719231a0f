"""Every recipe in the package runs end to end on a tiny random pipeline of its class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from tests.support.tiny_families import make_sd15
from tests.support.tiny_flux import make_tiny_flux
from tests.support.tiny_sd3 import WIDTH, make_text_encoder, make_tiny_sd3, make_tokenizer
from tpdm.config.loader import load_recipe
from tpdm.core.io import read_metrics
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import load_pipeline
from tpdm.pipelines.registry import backbone_facts, find_denoiser
from tpdm.policies.pretrained import read_config
from tpdm.training.train import train

RECIPES = Path(__file__).parents[1] / "src" / "tpdm" / "config" / "recipes"


def tiny_sd35(folder: Path) -> Any:
    """SD3.5: dual attention in the first block, and normalized queries and keys."""
    pipe = make_tiny_sd3(folder)
    config = dict(pipe.transformer.config) | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    torch.manual_seed(0)
    pipe.transformer = SD3Transformer2DModel.from_config(config).eval()
    return pipe


def tiny_flux(folder: Path) -> Any:
    """FLUX.1 with its two text encoders. The tokenizer of the T5 is CLIP's: only the class of the weights counts."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    shape = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    text_2 = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **shape)).eval()
    text = CLIPTextModel(make_text_encoder(tokenizer).config).eval()
    pipe = make_tiny_flux()
    pipe.register_modules(tokenizer=tokenizer, tokenizer_2=tokenizer, text_encoder=text, text_encoder_2=text_2)
    pipe.tokenizer_max_length = 12
    return pipe


def tiny_sd15(folder: Path) -> Any:
    """SD1.5 with its text encoder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    pipe = make_sd15()
    pipe.register_modules(tokenizer=tokenizer, text_encoder=CLIPTextModel(make_text_encoder(tokenizer).config).eval())
    return pipe


TINY: dict[str, Callable[[Path], Any]] = {
    "sd3-medium": make_tiny_sd3,
    "sd3.5-large": tiny_sd35,
    "flux1-dev": tiny_flux,
    "sd15": tiny_sd15,
}
SMALL = [
    "backbone.height=16",
    "backbone.width=16",
    "backbone.dtype=fp32",
    "backbone.device=cpu",
    "tpm.channels=8",
    "sampling.max_steps=4",
    "reward.name=tinyworld",
    "rl.updates=1",
    "rl.prompts_per_update=2",
    "rl.samples_per_prompt=2",
    "validation.prompts=2",
]


def test_every_recipe_is_tried():
    elsewhere = {"tinyworld", "tinyworld-quality"}  # by tests/test_demo.py and tests/evaluation/test_evaluate.py
    assert {p.stem for p in RECIPES.glob("*.yaml")} == {*TINY, *elsewhere}


@pytest.mark.parametrize("name", TINY)
def test_it_runs_end_to_end(name, tmp_path):
    TINY[name](tmp_path / "tokens").save_pretrained(tmp_path / "pipe")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(a + b for a in "abcdef" for b in "abcdef"))
    places = [f"backbone.name_or_path={tmp_path / 'pipe'}", f"prompts.source={prompts}", f"output={tmp_path / 'run'}"]
    recipe = load_recipe(RECIPES / f"{name}.yaml", [*SMALL, *places])
    best = train(recipe)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["ratio_deviation"] < 1e-5 for row in rows if row["kind"] == "train"] == [True]
    pipe = load_pipeline(tmp_path / "pipe", device="cpu")
    assert read_config(best).backbone_facts == backbone_facts(find_denoiser(pipe))
    out = attach(pipe, best)("a cat", seeds=[0])
    assert out.images[0].size == (16, 16)
    assert 1 <= out.steps[0] <= 4


def test_the_curve_in_the_recipe_is_the_measured_one():
    curves = json.loads((RECIPES.parents[3] / "docs" / "results" / "demo-curves.json").read_text(encoding="utf-8"))
    lines = (RECIPES / "tinyworld.yaml").read_text(encoding="utf-8").splitlines()
    shown = [[float(n) for n in line[1:].split()] for line in lines if line.startswith("#   ") and "update" not in line]
    for numbers, points in zip(shown, zip(*(c["validations"] for c in curves), strict=True), strict=True):
        steps, scores = [round(p["steps"], 1) for p in points], [round(p["score"], 3) for p in points]
        assert numbers == [points[0]["update"], *steps, *scores]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_use_the_present_names(path, caplog):
    load_recipe(path)
    assert not caplog.records
