"""Positions of gamma in its range, and quality settings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpdm.core.errors import ConfigError
from tpdm.policies.gamma import check_range, gamma_at, gamma_position, quality_to_gamma, spread_gammas, steps_to_quality

LOW, HIGH = 0.98, 0.9995
shares = st.floats(0, 1)


@given(share=shares)
def test_position_is_linear_in_the_log_of_a_steps_price(share):
    gamma = gamma_at(share, LOW, HIGH)
    assert LOW <= gamma <= HIGH
    # fp32 leaves 1 - gamma about four digits here.
    assert float(gamma_position(torch.tensor([gamma]), LOW, HIGH)) == pytest.approx(2 * share - 1, abs=1e-3)
    assert (1 - gamma) == pytest.approx((1 - LOW) ** (1 - share) * (1 - HIGH) ** share)


@given(count=st.integers(1, 50), offset=st.floats(0, 0.999))
def test_spread_gammas_draws_once_from_each_part_of_the_range(count, offset):
    position_B = gamma_position(torch.tensor(spread_gammas(count, LOW, HIGH, offset)), LOW, HIGH)
    part_B = ((position_B + 1) / 2 * count - offset).round().long()
    assert part_B.tolist() == list(range(count))


steps = st.lists(st.floats(1, 40), min_size=2, max_size=6)


@given(mean_steps=steps, a=shares, b=shares)
def test_more_quality_never_means_a_lower_gamma(mean_steps, a, b):
    gammas = [gamma_at(i / (len(mean_steps) - 1), LOW, HIGH) for i in range(len(mean_steps))]
    first, second = (quality_to_gamma(q, gammas, mean_steps) for q in sorted((a, b)))
    assert LOW <= first <= second + 1e-12 <= HIGH + 1e-12


def test_halfway_in_quality_is_the_geometric_mean_of_steps():
    gammas = [gamma_at(i / 2, LOW, HIGH) for i in range(3)]
    assert quality_to_gamma(0.5, gammas, [4, 8, 16]) == pytest.approx(gammas[1])
    assert quality_to_gamma(0, gammas, [4, 8, 16]) == LOW
    assert quality_to_gamma(1, gammas, [4, 8, 16]) == HIGH
    # Beyond the middle: 8 * sqrt(2) steps are reached .41 of the way from 8 to 16.
    assert quality_to_gamma(0.75, gammas, [4, 8, 16]) == pytest.approx(gamma_at(2**0.5 - 1, gammas[1], HIGH))


@pytest.mark.parametrize("quality", [-0.1, 1.5, float("nan")])
def test_quality_out_of_range_raises(quality):
    with pytest.raises(ConfigError, match="0 \\(fewest steps\\) to 1"):
        quality_to_gamma(quality, [LOW, HIGH], [4, 16])


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.9), (0.99, 0.9), (0.0, 0.9), (0.9, 1.0), (float("nan"), 0.9)])
def test_an_invalid_gamma_range_raises(low, high):
    with pytest.raises(ConfigError, match="low < high"):
        check_range(low, high)


@given(quality=shares)
def test_steps_to_quality_inverts_quality_to_gamma(quality):
    steps = 4 * (16 / 4) ** quality
    assert steps_to_quality(steps, [4, 9, 16]) == pytest.approx(quality, abs=1e-9)


def test_steps_outside_the_calibration_give_its_nearer_end():
    assert [steps_to_quality(steps, [4, 9, 16]) for steps in (1, 4, 16, 50)] == [0, 0, 1, 1]
