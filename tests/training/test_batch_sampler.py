"""Draws of an update: prompts by epoch, and noise that a group shares or not."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.support.gaussian_problem import make_small_problem, prompts
from tpdm.core.errors import PromptError
from tpdm.training.batch_sampler import draw_prompts
from tpdm.training.initialization import CALIBRATION_PROMPTS
from tpdm.training.loop import train_loop


@pytest.mark.parametrize(("count", "available"), [(4, 10), (5, 10), (10, 10), (7, 3), (1, 1)])
def test_each_epoch_draws_every_prompt_once(count, available):
    pool = prompts(available)
    drawn = [p for update in range(available * 2) for p in draw_prompts(pool, count, 3, update)]
    assert len(drawn) == 2 * available * count
    for start in range(0, len(drawn), available):
        assert Counter(drawn[start : start + available]) == Counter(pool)


def test_draws_depend_only_on_seed_and_update():
    pool = prompts(50)
    again = [draw_prompts(pool, 8, 1, update) for update in (9, 2, 5)]
    assert again == [draw_prompts(pool, 8, 1, 9), draw_prompts(pool, 8, 1, 2), draw_prompts(pool, 8, 1, 5)]
    assert draw_prompts(pool, 8, 1, 0) != draw_prompts(pool, 8, 2, 0)
    assert draw_prompts(pool, 50, 1, 0) != draw_prompts(pool, 50, 1, 1)  # each epoch has its own order


def test_missing_training_prompts_are_refused():
    with pytest.raises(PromptError, match="There are no training prompts"):
        draw_prompts([], 4, 0, 0)


@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_groups_share_noise_only_if_the_recipe_says_so(tmp_path, noise):
    recipe, parts = make_small_problem(tmp_path, rl={"noise": noise, "updates": 2})
    calls = []

    def spy(request):
        generated = parts.sampler(request)
        calls.append((request, generated))
        return generated

    train_loop(recipe, replace(parts, sampler=spy), tmp_path)
    calibration, *rollouts = [call for call in calls if call[1].trajectories is not None]
    assert len(calibration[0]) == CALIBRATION_PROMPTS
    assert len(rollouts) == 2
    for request, generated in rollouts:
        texts, seeds = request.prompts, request.seeds
        assert len(set(request.decision_seeds)) == 16
        assert len(set(seeds)) == (4 if noise == "shared" else 16)
        for first in range(0, 16, 4):
            assert len(set(texts[first : first + 4])) == 1
            assert len(set(seeds[first : first + 4])) == (1 if noise == "shared" else 4)
            ends = generated.images_B3HW[first : first + 4, 1]  # where the exact flow goes from that noise
            hard = texts[first].startswith("hard")
            assert torch.equal(ends, ends[:1].expand(4, -1)) or (noise == "independent" and hard)
    assert not set(rollouts[0][0].seeds) & set(rollouts[1][0].seeds)  # new noise in every update


def test_validations_use_the_mode_and_the_same_noise(tmp_path):
    recipe, parts = make_small_problem(tmp_path, validation={"every": 1, "samples_per_prompt": 2}, rl={"updates": 2})
    calls = []

    def spy(request):
        calls.append(request)
        return parts.sampler(request)

    train_loop(recipe, replace(parts, sampler=spy), tmp_path)
    seen = [request for request in calls if request.decision_seeds is None]
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0].seeds)) == 2 * len(parts.validation_prompts)
