"""Solvers have their orders on an exact model, and the images of a batch are independent."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_solvers import noise, random_times
from tests.support.mixture import Mixture, integrate
from tpdm.core.solvers import SOLVERS


def whole(n: int) -> torch.Tensor:
    return torch.linspace(1, 0, n + 1, dtype=torch.float64)


def inner(n: int) -> torch.Tensor:
    """Times at even distances in log-SNR, without the ends."""
    return torch.sigmoid(-0.5 * torch.linspace(-4, 4, n + 1, dtype=torch.float64))


@pytest.mark.parametrize("grid", [whole, inner])
@pytest.mark.parametrize(("name", "low", "high"), [("euler", 0.9, 1.2), ("dpmpp_2m", 1.6, 2.4), ("ab2", 1.8, 2.2)])
def test_order_of_convergence_on_the_exact_model(name, low, high, grid):
    """On the whole interval DPM++ 2M's error is n^-2 ln n (its steps near t = 0 are not small in log-SNR)."""
    mixture, x_BD = Mixture(), noise(32, 2, dtype=torch.float64)
    exact_BD, _ = integrate(SOLVERS["ab2"], mixture, x_BD, [grid(2048)] * 32)
    steps, errors = [64, 128, 256], []
    for n in steps:
        found_BD, evaluations = integrate(SOLVERS[name], mixture, x_BD, [grid(n)] * 32)
        assert evaluations == n
        errors.append((found_BD - exact_BD).abs().mean().item())
    slope = math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])
    assert low < slope < high, errors


@pytest.mark.parametrize("name", SOLVERS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_six_schedules_in_one_batch_equal_the_six_alone(name, seed):
    mixture, x_BD = Mixture(), noise(6, 2, seed=seed)
    schedules = [random_times(seed + i, n) for i, n in enumerate([1, 2, 4, 7, 5, 12])]
    together_BD, _ = integrate(SOLVERS[name], mixture, x_BD, schedules)
    for i, times in enumerate(schedules):
        alone_BD, evaluations = integrate(SOLVERS[name], mixture, x_BD[i : i + 1], [times])
        assert evaluations == len(times) - 1
        assert torch.equal(alone_BD[0], together_BD[i])
