"""Recipes and overrides of version 0.1 are read under their old names, and each is named with its new one."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tpdm.config.loader import load_recipe, make_recipe, recipe_hash
from tpdm.config.recipe import Recipe
from tpdm.config.renamed import KEYS, with_first_names, with_present_names
from tpdm.core.errors import ConfigError
from tpdm.training.run_identity import run_identity, under_present_names

OLD = """
name: old
backbone: {text_encoders: leave}
tpm: {start_steps: 9, start_shift: 2.0, fast_steps: 4, maps: last, change: true}
reward: {gamma_range: [0.9, 0.99], gamma: 0.95}
optimizer: {average: 0.9}
rl: {normalise_advantages: dial, rollout: waiting}
validation: {dial_points: 3, pictures: 2}
evaluation: {grid: [2, 4], grid_prompts: 3, tuned: a/tpm, controls: a/controls, dial_points: 4}
"""
NEW: dict[str, Any] = {
    "name": "old",
    "backbone": {"precompute_prompt_embeddings": True},
    "tpm": {
        "init_steps": 9,
        "init_shift": 2.0,
        "init_steps_low_gamma": 4,
        "feature_maps": "last",
        "velocity_change": True,
    },
    "reward": {"gamma_range": [0.9, 0.99], "gamma": 0.95},
    "optimizer": {"ema_decay": 0.9},
    "rl": {"normalize_advantages": "gamma", "rollout": "static"},
    "validation": {"gamma_points": 3, "num_images_logged": 2},
    "evaluation": {
        "step_grid": [2, 4],
        "step_grid_prompts": 3,
        "tuned_baseline": "a/tpm",
        "baseline_cache": "a/controls",
        "gamma_points": 4,
    },
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(OLD, encoding="utf-8")
    return path


def test_an_old_recipe_is_read_and_every_new_name_is_logged(old, caplog):
    with caplog.at_level(logging.WARNING, "tpdm"):
        assert load_recipe(old) == make_recipe(NEW)
    for key, new in KEYS.items():
        assert f"{old}: {key} is now called {new}" in caplog.text
    assert f"{old}: the value waiting of rl.rollout is now called static." in caplog.text
    assert "rl.normalize_advantages: gamma" in caplog.text


def test_new_names_are_not_logged(tmp_path, caplog):
    make_recipe(NEW)
    assert not caplog.records


def test_an_old_override_replaces_a_new_key_and_the_reverse(old):
    assert load_recipe(old, ["optimizer.ema_decay=0.5"]).optimizer.ema_decay == 0.5
    recipe = load_recipe(old, ["rl.normalise_advantages=group", "rl.normalize_advantages=batch", "tpm.start_steps=5"])
    assert (recipe.rl.normalize_advantages, recipe.tpm.init_steps) == ("batch", 5)
    assert load_recipe(old, ["rl={normalise_advantages: dial}"]).rl.normalize_advantages == "gamma"


def test_a_key_under_both_names_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.average and optimizer\.ema_decay are the same key"):
        make_recipe({"name": "a", "optimizer": {"average": 0.9, "ema_decay": 0.9}})


def test_both_directions_are_inverse_and_know_only_present_keys():
    values = asdict(make_recipe(NEW))
    assert with_present_names(with_first_names(values), "recipe") == values
    known = {
        f"{section}.{key}"
        for section, keys in asdict(Recipe(name="a")).items()
        if isinstance(keys, dict)
        for key in keys
    }
    assert set(KEYS.values()) <= known
    assert not set(KEYS) & known


def test_runs_that_were_begun_under_old_names_are_resumed(old):
    now = run_identity(load_recipe(old), [], [])
    before = {
        {new: key for key, new in KEYS.items()}.get(key, key): {"gamma": "dial"}.get(value, value)
        if isinstance(value, str)
        else value
        for key, value in now.items()
    }
    assert before != now
    assert under_present_names(before) == now


def test_hashes_are_those_of_version_0_1():
    assert recipe_hash(Recipe(name="a")) == "1b477051899b"
