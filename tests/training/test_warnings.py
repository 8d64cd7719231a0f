"""Each detector warns once in a run that goes wrong, and not in a run that learns."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gaussian_problem import DistanceReward, make_small_problem
from tpdm.config.loader import _KEYS
from tpdm.core.io import read_metrics
from tpdm.training.loop import train_loop
from tpdm.training.monitoring.warnings import (
    DETECTORS,
    RECOVERED_AFTER,
    WINDOW,
    Detector,
    TrainingMonitor,
    find_warnings,
)


def warnings_of(folder, judge=None, caplog=None, judges=None, **sections):
    """Signs that a run gives in its log, by the text, and those that its rows give again."""
    recipe, parts = make_small_problem(folder, judge, **sections)
    train_loop(recipe, replace(parts, judges=judges or {}), folder)
    found = find_warnings(read_metrics(folder / "metrics.jsonl"), recipe)
    if caplog is not None:
        logged = [record.getMessage() for record in caplog.records if record.name == "tpdm.training.monitoring.logger"]
        assert logged == [f"update {warned.update}: {warned.message}" for warned in found]
    return {warned.sign: warned for warned in found}, found


def test_an_entropy_collapse_gives_a_warning(tmp_path, caplog):
    # The reward wants one and the same action everywhere; a high rate makes the policy certain of it.
    class OneStep(DistanceReward):
        def score(self, images_B3HW, prompts):
            return -images_B3HW[:, 0].norm(dim=1)

    signs, found = warnings_of(
        tmp_path,
        OneStep(),
        caplog,
        rl={"updates": 12, "prompts_per_update": 8},
        optimizer={"lr": 0.05, "lr_schedule": "constant"},
        reward={"step_cost": 0.0},
    )
    assert "rl.entropy_weight" in signs["entropy"].message
    assert [warned.sign for warned in found].count("entropy") == 1


def test_a_constant_reward_gives_a_warning(tmp_path, caplog):
    class FlatLater(DistanceReward):
        calls = 0

        def score(self, images_B3HW, prompts):
            self.calls += 1
            return super().score(images_B3HW, prompts) * (self.calls <= 3)

    signs, _ = warnings_of(tmp_path, FlatLater(), caplog, reward={"step_cost": 0.0})
    assert signs["silence"].update == 2 + WINDOW
    assert "reward.name" in signs["silence"].message


def test_a_reward_of_the_prompt_only_gives_a_warning(tmp_path):
    class PromptOnly(DistanceReward):
        def score(self, images_B3HW, prompts):
            return torch.tensor([float(p.split()[1]) for p in prompts])

    signs, _ = warnings_of(tmp_path, PromptOnly(), reward={"step_cost": 0.0})
    assert "rl.samples_per_prompt" in signs["silence"].message


FAST = {"lr": 0.03, "lr_schedule": "constant"}


def test_negative_discounted_scores_give_a_warning_about_the_offset(tmp_path, caplog):
    signs, _ = warnings_of(
        tmp_path,
        None,
        caplog,
        rl={"updates": 40, "samples_per_prompt": 8},
        optimizer=FAST,
        reward={"form": "discounted", "gamma": 0.7, "offset": 0.0, "step_cost": 0.0},
    )
    assert "reward.offset is -" in signs["cap"].message
    assert "Raise reward.offset" in signs["cap"].message


def test_the_key_of_a_warning_at_the_cap_depends_on_the_form(tmp_path):
    recipe, _ = make_small_problem(tmp_path)
    rows = [
        {"kind": "train", "update": n, "steps_histogram": {"12": 19, "11": 1}, "score_mean": 3.0} for n in range(1, 4)
    ]
    cap = next(d for d in DETECTORS if d.sign == "cap").detect
    assert "Raise reward.step_cost" in (cap(rows, recipe) or "")
    discounted = replace(recipe, reward=replace(recipe.reward, form="discounted", gamma=0.99, step_cost=0.0))
    assert "Lower reward.gamma" in (cap(rows, discounted) or "")


def test_a_too_high_step_penalty_gives_a_warning(tmp_path, caplog):
    signs, _ = warnings_of(
        tmp_path, None, caplog, rl={"updates": 30, "samples_per_prompt": 8}, optimizer=FAST, reward={"step_cost": 5.0}
    )
    assert "Lower reward.step_cost" in signs["one step"].message


def test_a_policy_changed_between_rollout_and_update_gives_a_warning(tmp_path, caplog):
    recipe, parts = make_small_problem(tmp_path)

    class Meddling(DistanceReward):
        def score(self, images_B3HW, prompts):
            with torch.no_grad():  # as autocast or a hook from outside would
                parts.policy.fc2.bias += 0.01
            return super().score(images_B3HW, prompts)

    train_loop(recipe, replace(parts, reward=Meddling()), tmp_path)
    found = find_warnings(read_metrics(tmp_path / "metrics.jsonl"), recipe)
    assert [(warned.sign, warned.update) for warned in found] == [("ratio", 1)]
    assert "update 1: A probability ratio differs" in caplog.text


def test_an_exploited_reward_gives_a_warning(tmp_path, caplog):
    class Wrong(DistanceReward):
        def score(self, images_B3HW, prompts):
            return -super().score(images_B3HW, prompts)

    signs, _ = warnings_of(
        tmp_path,
        Wrong(),
        caplog,
        judges={"distance": DistanceReward()},
        rl={"updates": 20, "samples_per_prompt": 8},
        optimizer=FAST,
    )
    assert "the judge 'distance' fell from" in signs["judge"].message
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "validation"]
    assert all(row["judges"]["distance"]["mean"] == pytest.approx(-row["score_mean"], abs=1e-6) for row in rows)


def test_a_resumed_run_does_not_repeat_warnings(tmp_path, caplog):
    expensive = {"optimizer": FAST, "reward": {"step_cost": 5.0}, "rl": {"updates": 20, "samples_per_prompt": 8}}
    _, found = warnings_of(tmp_path, None, caplog, **expensive)
    assert found
    caplog.clear()
    expensive["rl"]["updates"] = 24
    _, again = warnings_of(tmp_path, **expensive)
    assert again == found
    assert caplog.records == []


@given(st.lists(st.booleans(), max_size=60))
def test_a_sign_is_reported_once_and_again_after_it_was_absent(signs):
    detector = Detector("detector", "train", lambda rows, recipe: "detector" if rows[-1]["present"] else None)
    monitor = TrainingMonitor(recipe=None)  # type: ignore[arg-type]
    reported, absent = [], RECOVERED_AFTER
    for update, present in enumerate(signs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tpdm.training.monitoring.warnings.DETECTORS", (detector,))
            new = monitor.look({"kind": "train", "update": update, "present": present})
        expected = present and absent >= RECOVERED_AFTER
        assert [warned.update for warned in new] == ([update] if expected else [])
        reported += new
        absent = 0 if present else absent + 1


def test_every_warning_names_a_key_that_recipes_have():
    import inspect
    import re

    from tpdm.training.monitoring import warnings as health

    named = set(
        re.findall(r"\b((?:rl|reward|optimizer|sampling|validation|backbone)\.[a-z_]+)", inspect.getsource(health))
    )
    assert len(named) > 8
    assert named <= set(_KEYS)
