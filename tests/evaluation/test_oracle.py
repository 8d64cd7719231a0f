"""The upper bound equals known optima."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpdm.evaluation.oracle import allocation, at_steps


def test_an_allocation_gives_steps_to_images_that_need_them():
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
