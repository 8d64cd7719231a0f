"""Classical step-size control on the exact Gaussian-mixture flow."""

from itertools import pairwise

import pytest
import torch

from tests.support.gaussian_problem import EASY, HARD, noise_pool
from tests.support.mixture import Mixture
from tpdm.core.errors import ConfigError
from tpdm.core.solvers import Euler
from tpdm.core.stepper import Stepper
from tpdm.policies.error_control import FIRST, LONGEST, SHORTEST, ErrorControlled


def run(mixture: Mixture, tolerance: float, images: int = 64) -> Stepper:
    x = noise_pool()[:images]
    stepper = Stepper(ErrorControlled(tolerance), Euler(), images=images, max_steps=200, stop_below=0.0)
    while not stepper.done:
        x = stepper.advance(x, mixture.velocity(x, stepper.t_B.clamp_min(1e-3)), None)
    return stepper


def test_a_straight_flow_takes_the_longest_steps():
    # One first step, then two of the largest length: the change of a constant velocity is only rounding.
    assert run(EASY, 1e-3).steps == [1 + 2] * 64


def test_steps_grow_with_the_inverse_root_of_the_tolerance():
    coarse, fine = (sum(run(HARD, tolerance).steps) / 64 for tolerance in (4e-3, 1e-3))
    assert 1.5 < fine / coarse < 2.5


def test_images_are_independent():
    stepper = run(HARD, 2e-3)
    assert len(set(stepper.steps)) > 1
    alone = Stepper(ErrorControlled(2e-3), Euler(), images=1, max_steps=200, stop_below=0.0)
    x = noise_pool()[5:6]
    while not alone.done:
        x = alone.advance(x, HARD.velocity(x, alone.t_B), None)
    assert alone.times[0] == pytest.approx(stepper.times[5], abs=1e-5)


def test_steps_are_within_their_limits():
    for times in run(HARD, 1e-7, images=4).times:
        assert times[1] == pytest.approx(1 - FIRST)
        assert all(SHORTEST - 1e-6 <= a - b <= LONGEST or b == 0 for a, b in pairwise(times))


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_tolerance_raises(tolerance):
    with pytest.raises(ConfigError, match="above 0"):
        ErrorControlled(tolerance)


def test_it_reads_no_features():
    assert not ErrorControlled(0.1).reads_features
    seen = ErrorControlled(0.1).observe(None, torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert seen.change_B is None
