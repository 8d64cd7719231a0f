"""Gamma-conditioned TPMs: each image has its gamma, from ``gamma`` or ``quality``."""

import dataclasses

import pytest
import torch

from tests.test_artifact import config_of
from tpdm.core.errors import BackboneError, ConfigError
from tpdm.core.types import Features
from tpdm.policies.conditioned import ConditionedPolicy, condition_policy, quality_for
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

LOW, HIGH = 0.95, 0.999
SHAPE = TPMConfig(
    12,
    10,
    channels=16,
    grid=4,
    init_times=tuple(i / 16 for i in range(16, -1, -1)),
    gamma_range=(LOW, HIGH),
    init_times_low_gamma=(1.0, 0.75, 0.5, 0.25, 0.0),
)


def features(B: int) -> Features:
    g = torch.Generator().manual_seed(1)
    maps = [torch.randn(B, 12, 4, 4, generator=g) for _ in range(2)]
    return Features(*maps, torch.randn(B, 10, generator=g))


def proposed(policy, B=3, seeds=None):
    zeros = torch.zeros(B, dtype=torch.int64)
    seen = policy.observe(features(B), torch.full((B,), 0.75), zeros, torch.arange(B))
    return seen, policy.propose(seen, seeds)


def test_the_untrained_tpm_follows_the_schedule_of_each_end():
    with torch.no_grad():
        policy = TimePredictionModule(SHAPE)
        policy.fc2.weight.zero_()
    seen, decision = proposed(condition_policy(policy, 3, gamma=[LOW, (LOW * HIGH) ** 0.5, HIGH]))
    assert seen.gamma_B.tolist() == pytest.approx([LOW, (LOW * HIGH) ** 0.5, HIGH])
    fast, between, slow = decision.t_next_B.tolist()
    assert fast == pytest.approx(0.5, abs=1e-3)
    assert slow == pytest.approx(0.75 - 1 / 16, abs=1e-3)
    assert fast < between < slow


def test_images_of_a_call_are_independent_of_each_others_gamma():
    policy = TimePredictionModule(SHAPE, seed=3)
    _, together = proposed(condition_policy(policy, 3, gamma=[LOW, 0.99, HIGH]), seeds=[1, 2, 3])
    for row, gamma in enumerate([LOW, 0.99, HIGH]):
        _, alone = proposed(condition_policy(policy, 3, gamma=gamma), seeds=[1, 2, 3])
        assert float(alone.action_B[row]) == pytest.approx(float(together.action_B[row]), abs=1e-6)


def test_the_weights_depend_on_gamma():
    policy = TimePredictionModule(dataclasses.replace(SHAPE, init_times_low_gamma=None), seed=3)
    _, decision = proposed(condition_policy(policy, 3, gamma=LOW))
    _, other = proposed(condition_policy(policy, 3, gamma=HIGH))
    assert (decision.t_next_B != other.t_next_B).all()


def test_stored_decisions_score_as_they_were_made():
    policy = TimePredictionModule(SHAPE, seed=3)
    seen, decision = proposed(condition_policy(policy, 3, gamma=[LOW, 0.99, HIGH]), seeds=[1, 2, 3])
    logp_B, _, _ = policy.evaluate(seen, decision.action_B)
    assert (logp_B - decision.logp_B).abs().max() < 1e-6
    with pytest.raises(BackboneError, match="gamma is missing"):
        policy.evaluate(dataclasses.replace(seen, gamma_B=None), decision.action_B)


def calibrated() -> TimePredictionModule:
    policy = TimePredictionModule(SHAPE)
    policy.artifact = config_of(SHAPE, gamma=0.99, gamma_steps=((LOW, 4.0), (0.99, 8.0), (HIGH, 16.0)))
    return policy


def test_quality_uses_the_calibration_and_the_saved_gamma_is_the_default():
    policy = calibrated()
    set_ = condition_policy(policy, 2, quality=[0.0, 0.5])
    assert isinstance(set_, ConditionedPolicy)
    assert set_.gamma_B.tolist() == pytest.approx([LOW, 0.99])
    default = condition_policy(policy, 2)
    assert isinstance(default, ConditionedPolicy)
    assert default.gamma_B.tolist() == pytest.approx([0.99, 0.99])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0.5}, "trained for 0.95 to 0.999"),
        ({"gamma": float("nan")}, "trained for 0.95 to 0.999"),
        ({"gamma": [0.99]}, "gamma has 1 values for 2 images"),
        ({"quality": 2.0}, "fewest steps"),
        ({"gamma": 0.99, "quality": 0.5}, "Leave one out"),
    ],
)
def test_a_wrong_setting_raises(options, said):
    with pytest.raises(ConfigError, match=said):
        condition_policy(calibrated(), 2, **options)


def test_a_setting_that_the_policy_lacks_raises():
    uncalibrated = TimePredictionModule(SHAPE)
    with pytest.raises(ConfigError, match="not calibrated"):
        condition_policy(uncalibrated, 1, quality=0.5)
    with pytest.raises(ConfigError, match="Pass gamma or quality"):
        condition_policy(uncalibrated, 1)
    fixed = FixedSchedule([1.0, 0.0])
    assert condition_policy(fixed, 1) is fixed
    for policy in (
        fixed,
        TimePredictionModule(dataclasses.replace(SHAPE, gamma_range=None, init_times_low_gamma=None)),
    ):
        with pytest.raises(ConfigError, match="not gamma-conditioned"):
            condition_policy(policy, 1, quality=0.5)


def test_quality_for_a_mean_number_of_steps():
    quality = quality_for(calibrated(), 8)
    set_ = condition_policy(calibrated(), 1, quality=quality)
    assert isinstance(set_, ConditionedPolicy)
    assert set_.gamma_B.tolist() == pytest.approx([0.99])
    with pytest.raises(ConfigError, match=r"mean_steps is 0\. It must be above 0"):
        quality_for(calibrated(), 0)
    for policy in (FixedSchedule([1.0, 0.0]), TimePredictionModule(SHAPE)):
        with pytest.raises(ConfigError, match="has no calibration"):
            quality_for(policy, 7)
