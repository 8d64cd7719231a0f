"""Composite rewards: weighted sum, calibration, and statistics on disk."""

import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpdm.core.errors import RewardError
from tpdm.rewards.composite import CompositeReward, RewardPart, Standard, compute_rewards, run_reward, save_standards


@dataclass(frozen=True)
class Brightness:
    """``factor`` times the mean of the image, plus ``shift``."""

    name: str
    factor: float = 1.0
    shift: float = 0.0

    def score(self, images_B3HW, prompts):
        return images_B3HW.mean((1, 2, 3)) * self.factor + self.shift


class Red:
    name = "red"

    def score(self, images_B3HW, prompts):
        return images_B3HW[:, 0].mean((1, 2))


def images(count, seed):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def composite(*parts):
    return CompositeReward(tuple(RewardPart(reward.name, reward, weight) for reward, weight in parts))


def test_weighted_sum_of_standardized_scores():
    first, later, prompts = images(20, 0), images(5, 1), ["p"] * 20
    reward = composite((Brightness("bright", 50, -7), 2.0), (Red(), -0.5)).calibrated(first, prompts)
    bright, red = first.mean((1, 2, 3)) * 50 - 7, first[:, 0].mean((1, 2))
    expected = 2 * (later.mean((1, 2, 3)) * 50 - 7 - bright.mean()) / bright.std(correction=0)
    expected -= 0.5 * (later[:, 0].mean((1, 2)) - red.mean()) / red.std(correction=0)
    assert torch.allclose(reward.score(later, prompts[:5]), expected, atol=1e-4)
    assert abs(float(reward.score(first, prompts).mean())) < 1e-5
    scored = compute_rewards(reward, later, prompts[:5])
    assert torch.equal(scored.score_B, reward.score(later, prompts[:5]))
    assert torch.equal(scored.parts["red"], later[:, 0].mean((1, 2)))
    assert reward.name == "2 x bright + -0.5 x red"


@given(st.floats(0.01, 1000), st.floats(-100, 100))
def test_the_unit_of_a_part_does_not_matter(factor, shift):
    plain, scaled = (
        composite((Brightness("bright", *unit), 1.0), (Red(), 1.0)).calibrated(images(8, 0), ["p"] * 8)
        for unit in ((1.0, 0.0), (factor, shift))
    )
    difference = plain.score(images(4, 2), ["p"] * 4) - scaled.score(images(4, 2), ["p"] * 4)
    # A large shift reduces the precision of the fp32 scores.
    assert float(difference.abs().max()) < 1e-3 + 1e-4 * abs(shift) / factor


def test_a_single_reward_has_no_parts():
    scored = compute_rewards(Red(), images(3, 0), ["p"] * 3)
    assert scored.parts == {}
    assert torch.equal(scored.score_B, images(3, 0)[:, 0].mean((1, 2)))


def test_scoring_without_statistics_is_refused():
    with pytest.raises(RewardError, match=r"has no statistics\. .* Call calibrated\(\) with a batch"):
        composite((Red(), 1.0)).score(images(2, 0), ["a", "b"])


def test_a_part_with_constant_scores_is_refused():
    with pytest.raises(RewardError, match="Part 'flat' of the reward gives all 4 calibration images the score 3"):
        composite((Red(), 1.0), (Brightness("flat", 0.0, 3.0), 1.0)).calibrated(images(4, 0), ["p"] * 4)


def test_a_failure_names_the_part():
    reward = composite((Red(), 1.0), (Brightness("broken", float("nan")), 1.0))
    with pytest.raises(RewardError, match="Reward 'broken' returned nan for 'a prompt'"):
        reward.calibrated(images(2, 0), ["a prompt", "b"])


def test_statistics_are_saved_bit_for_bit(tmp_path):
    bare = composite((Brightness("bright", 1 / 3), 1.0), (Red(), 1.0))
    reward = bare.calibrated(images(9, 0), ["p"] * 9)
    save_standards(reward, tmp_path)
    assert run_reward(bare, tmp_path) == reward
    plain = Red()
    assert run_reward(plain, tmp_path) is plain


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"red": {"mean": 1}}', "cannot be read"),
        (
            '{"blue": {"mean": 1, "sd": 1}}',
            r"contains statistics of \['blue'\]\. The reward needs valid statistics of \['red'\]",
        ),
        ('{"red": {"mean": 1, "sd": 0}}', "contains statistics of"),
        ('{"red": {"mean": NaN, "sd": 1}}', "contains statistics of"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "reward-statistics.json").write_text(content)
    with pytest.raises(RewardError, match=words):
        run_reward(composite((Red(), 1.0)), tmp_path)


def test_the_file_is_readable_json(tmp_path):
    save_standards(CompositeReward((RewardPart("red", Red(), 1.0),), {"red": Standard(0.5, 0.25)}), tmp_path)
    assert json.loads((tmp_path / "reward-statistics.json").read_text()) == {"red": {"mean": 0.5, "sd": 0.25}}
