"""A training over a range of gamma, where the best number of steps depends on gamma."""

import dataclasses

import pytest
import torch

from tests.support.gaussian_problem import GaussianSampler, make_problem, make_small_problem, prompts
from tpdm.config.recipe import RewardConfig
from tpdm.core.io import read_metrics
from tpdm.policies.gamma import gamma_position
from tpdm.policies.pretrained import load_policy
from tpdm.sampling.base import SampleRequest
from tpdm.training.batch_sampler import draw_gammas
from tpdm.training.loop import train_loop
from tpdm.training.monitoring.metrics import gamma_points

LOW, HIGH = 0.9, 0.999
REWARD = {"form": "discounted", "offset": 4.0, "gamma": 0.99, "gamma_range": (LOW, HIGH), "step_cost": 0.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gamma")
    recipe, parts = make_problem(
        folder, reward=REWARD, rl={"updates": 60, "prompts_per_update": 16, "samples_per_prompt": 8}
    )
    train_loop(recipe, parts, folder)
    return folder


def test_fewer_steps_as_gamma_falls(trained):
    rows = read_metrics(trained / "metrics.jsonl")
    last = [row for row in rows if row["kind"] == "validation"][-1]["gamma_points"]
    assert [row["gamma"] for row in last] == pytest.approx(gamma_points(RewardConfig(**REWARD), 5))
    steps = [row["steps_mean"] for row in last]
    assert steps == sorted(steps)
    assert steps[-1] > 1.5 * steps[0]


def test_the_artifact_is_calibrated_over_gamma(trained):
    policy = load_policy(trained / "best")
    assert policy.artifact is not None
    assert policy.artifact.gamma_steps is not None
    texts, seeds = [p.text for p in prompts(64, first=1000)], list(range(64))
    means = []
    for gamma, _ in policy.artifact.gamma_steps:
        made = GaussianSampler(policy)(SampleRequest(texts, seeds, gammas=[gamma] * 64))
        means.append(sum(made.steps) / 64)
    assert means == sorted(means)
    assert means == pytest.approx([steps for _, steps in policy.artifact.gamma_steps], rel=0.25)


def test_it_resumes_with_the_same_gammas(tmp_path):
    recipe, parts = make_small_problem(tmp_path, reward=REWARD)
    train_loop(recipe, parts, tmp_path)
    whole = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]

    class Stopped(Exception):
        pass

    def stop_after(parts, calls):
        inner = parts.sampler

        def sampler(*args, **options):
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise Stopped
            return inner(*args, **options)

        return dataclasses.replace(parts, sampler=sampler)

    folder = tmp_path / "again"
    recipe, parts = make_small_problem(folder, reward=REWARD)
    with pytest.raises(Stopped):
        train_loop(recipe, stop_after(parts, 9), folder)
    recipe, parts = make_small_problem(folder, reward=REWARD)
    train_loop(recipe, parts, folder)
    again = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    clocks = ("seconds", "reward_seconds", "learn_seconds")
    assert [{k: v for k, v in row.items() if k not in clocks} for row in again] == [
        {k: v for k, v in row.items() if k not in clocks} for row in whole
    ]


def test_gammas_are_spread_over_the_range_and_differ_between_updates():
    config = RewardConfig(**REWARD)
    first, second = (draw_gammas(config, 12, seed=3, update=u) for u in (0, 1))
    assert first is not None
    assert first == draw_gammas(config, 12, seed=3, update=0)
    assert first != second
    assert first != sorted(first)
    spread_B = gamma_position(torch.tensor(sorted(first)), LOW, HIGH)
    assert float(spread_B.diff().min()) == pytest.approx(2 / 12, abs=1e-2)
    assert draw_gammas(RewardConfig(), 12, seed=3, update=0) is None
