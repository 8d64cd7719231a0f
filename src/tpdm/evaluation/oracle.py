"""How much there is to gain by looking: schedules chosen for every image by one who knows its score.

No policy reaches an oracle: it sees the reward of the finished image. It bounds what looking can give, and tells
whether a weak result is the policy's fault or the problem's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRICES = 200  # tried of a step, between nothing and more than any score is worth


def allocation(score_NB: Floats, steps_N: Sequence[int]) -> list[tuple[float, float]]:
    """The best mean score at every mean number of steps, when each image may choose among fixed schedules.

    At a price of a step every image takes the schedule of highest score minus price; as the price falls, steps and
    score rise. What lies between two prices is a mixture.

    Args:
        score_NB: of every image under the schedule of each number of steps.
        steps_N: those numbers, rising.

    Returns:
        (mean steps, mean score), both rising.
    """
    steps = np.asarray(steps_N, dtype=np.float64)
    span = float(np.ptp(score_NB, axis=0).max()) or 1.0
    prices = np.concatenate([np.geomspace(span, span * 1e-6, PRICES), [0.0]])
    columns = np.arange(score_NB.shape[1])
    points: list[tuple[float, float]] = []
    for price in prices:
        # Of equal values the first, that is the fewest steps.
        choice_B = np.argmax(score_NB - price * steps[:, None], axis=0)
        point = (float(steps[choice_B].mean()), float(score_NB[choice_B, columns].mean()))
        if not points or point[0] > points[-1][0]:
            points.append(point)
    return points


def at_steps(points: Sequence[tuple[float, float]], steps: float) -> float:
    """The score at a mean number of steps, between points by mixture; the ends beyond them."""
    x, y = zip(*points, strict=True)
    return float(np.interp(steps, x, y))
