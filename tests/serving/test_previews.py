"""A requested number of previews is exact, and spread over the times."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpdm.serving.engine.previews import PreviewPlan


@dataclass(frozen=True)
class Step:
    index: int
    t: float


def shown(number, times):
    """What each step shows, by the number of the step."""
    plan = PreviewPlan(number)
    return [[step.index for step in plan.shown_at(Step(i, t))] for i, t in enumerate(times, 1)]


falling = st.lists(st.floats(1e-6, 1, exclude_max=True), max_size=30, unique=True).map(
    lambda t: sorted(t, reverse=True)
)


@given(number=st.integers(1, 3), times=falling)
def test_each_image_has_the_requested_number_of_previews_and_none_twice(number, times):
    each = shown(number, [*times, 0.0])
    all_of_them = [index for one in each for index in one]
    assert len(all_of_them) == min(number, len(times) + 1)
    assert len(set(all_of_them)) == len(all_of_them)
    assert all(one in ([], [i]) for i, one in enumerate(each[:-1], 1))  # before the end a step shows itself
    assert each[-1] == sorted(each[-1])


@pytest.mark.parametrize(
    ("number", "times", "expected"),
    [
        (1, [0.8, 0.6, 0.4, 0.2, 0.0], [[], [], [3], [], []]),
        (3, [0.8, 0.6, 0.4, 0.2, 0.0], [[], [2], [3], [4], []]),
        (3, [0.9, 0.75, 0.5, 0.25, 0.0], [[], [2], [3], [4], []]),
        (3, [0.2, 0.1, 0.05, 0.0], [[1], [2], [3], []]),  # a long step leaves what is due to the next
        (3, [0.9, 0.8, 0.7, 0.6, 0.0], [[], [], [3], [], [4, 5]]),
        (3, [0.9, 0.8, 0.0], [[], [], [1, 2, 3]]),
        (3, [0.5, 0.0], [[1], [2]]),  # fewer steps than previews
        (3, [0.0], [[1]]),
    ],
)
def test_previews_are_spread_over_the_times(number, times, expected):
    assert shown(number, times) == expected
