"""Every recipe in the package runs end to end on a tiny random pipeline of its class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.config import load_recipe
from tpdm.pipelines.attach import attach
from tpdm.pipelines.load import load_pipeline
from tpdm.train.log import read_metrics
from tpdm.train.run import train

RECIPES = Path(__file__).parents[1] / "src" / "tpdm" / "recipes"


def tiny_sd35(folder: Path) -> Any:
    """SD3.5: dual attention in the first block, and normalised queries and keys."""
    pipe = make_tiny_sd3(folder)
    config = dict(pipe.transformer.config) | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    torch.manual_seed(0)
    pipe.transformer = SD3Transformer2DModel.from_config(config).eval()
    return pipe


TINY: dict[str, Callable[[Path], Any]] = {
    "sd3-medium": make_tiny_sd3,
    "sd3.5-large": tiny_sd35,
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
    assert {p.stem for p in RECIPES.glob("*.yaml")} == {*TINY, "tinyworld"}  # tests/test_demo.py runs that one


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
    out = attach(load_pipeline(tmp_path / "pipe", device="cpu"), best)("a cat", seeds=[0])
    assert out.images[0].size == (16, 16)
    assert 1 <= out.steps[0] <= 4
