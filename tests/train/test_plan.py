"""The plan of a run is that of the run: counted on the real one at small size."""

import pytest
import torch
from typer.testing import CliRunner

from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.cli import app
from tpdm.pipelines.load import load_pipeline
from tpdm.pipelines.probe import probe_features
from tpdm.pipelines.sizes import pipeline_sizes
from tpdm.recipe import BackboneConfig, PromptsConfig, Recipe, RlConfig, SamplingConfig, TpmConfig
from tpdm.train.plan import make_plan, replay_bytes
from tpdm.types import BackboneError

RECIPE = Recipe(
    name="plan",
    prompts=PromptsConfig(limit=200),
    rl=RlConfig(updates=3, prompts_per_update=5, samples_per_prompt=4),
    sampling=SamplingConfig(max_steps=7),
    tpm=TpmConfig(channels=16, grid=2),
)


def test_sizes_from_configuration_alone_are_those_of_the_loaded_pipeline(tmp_path):
    make_tiny_sd3(tmp_path / "tokens").save_pretrained(tmp_path / "pipe")
    for name in ("tinyworld", tmp_path / "pipe"):
        pipe, sizes = load_pipeline(name, device="cpu"), pipeline_sizes(name)
        networks = {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}
        assert sizes.parameters == {k: sum(p.numel() for p in v.parameters()) for k, v in networks.items()}
        widths = probe_features(pipe, {"max_sequence_length": 4})
        assert (sizes.feature_channels, sizes.temb_channels) == (widths.feature_channels, widths.temb_channels)


def test_the_numbers_of_a_plan():
    plan = make_plan(RECIPE)
    assert (plan.trajectories, plan.images_per_run, plan.evaluations_per_update) == (20, 60, 140)
    assert plan.training_prompts + plan.validation_prompts <= 200
    # 160 channels, first and last, on 2 x 2 cells, and the time embedding, in fp16.
    assert plan.memory["replay of one update, at most"] == 140 * 2 * (2 * 160 * 4 + 160)


def test_replay_of_sd3_medium_is_a_sixteenth_of_the_release_s_or_less():
    recipe = Recipe(name="sd3")
    per_decision = replay_bytes(recipe, 1536, 1536) / (256 * recipe.sampling.max_steps)
    assert per_decision <= 25e6 / 16


def test_the_command_prints_it_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: dry\nprompts: {source: tinyworld, limit: 200}\n")
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "64 prompts x 4 samples = 256 trajectories" in result.output
    assert "transformer (frozen)" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_missing_pipeline_is_said():
    with pytest.raises(BackboneError, match="whose configuration cannot be read"):
        make_plan(Recipe(name="x", backbone=BackboneConfig(name_or_path="no/such/folder/here")))
