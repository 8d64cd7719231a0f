"""Oracles where the best choice is known."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpdm.evaluation.oracle import allocation, at_steps, search_schedules, vary


def test_an_allocation_gives_steps_to_those_who_need_them():
    # Half of the images are done after 2 steps, the other half need 10.
    score_NB = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.2, 0.2], [1.0, 1.0, 1.0, 1.0]])
    points = allocation(score_NB, [2, 4, 10])
    assert points[0] == (2.0, 0.5)
    assert points[-1] == (6.0, 1.0)
    assert at_steps(points, 4.0) == pytest.approx(0.75)  # a fixed schedule of 4 steps has .6
    assert at_steps(points, 28.0) == 1.0


@given(st.integers(0, 10_000))
def test_an_allocation_is_never_below_a_fixed_schedule(seed):
    steps = [2, 4, 8, 16]
    score_NB = np.random.default_rng(seed).random((4, 12))
    points = allocation(score_NB, steps)
    assert all(a[0] < b[0] and a[1] <= b[1] + 1e-12 for a, b in pairwise(points))
    for row, n in zip(score_NB, steps, strict=True):
        assert at_steps(points, n) >= row.mean() - 1e-6


@given(scale=st.floats(0, 1), seed=st.integers(0, 1000), n=st.integers(1, 20), start=st.floats(0.3, 1))
def test_variations_are_schedules(scale, seed, n, start):
    times = [start * (1 - i / n) for i in range(n)] + [0.0]
    varied = vary(times, scale, np.random.default_rng(seed))
    assert len(varied) == len(times)
    assert varied[0] == pytest.approx(start)
    assert varied[-1] == 0.0
    assert all(a > b for a, b in pairwise(varied))


def test_a_search_finds_what_each_image_wants():
    # Image b wants its second time at wanted[b]; for all of them together .5 is best.
    wanted = np.linspace(0.3, 0.7, 12)

    def score(schedules):
        return np.array([-((times[1] - w) ** 2) for times, w in zip(schedules, wanted, strict=True)])

    found = search_schedules(score, [1.0, 0.9, 0.0], images=12, candidates=40, rounds=2)
    assert found.start_B.mean() < found.shared_B.mean() < found.own_B.mean()
    assert found.own_B.mean() > -1e-4
    assert [times[1] for times in found.own] == pytest.approx(wanted.tolist(), abs=0.03)
    assert found.tried == 1 + 40 * 3
