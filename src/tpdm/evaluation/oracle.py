"""Upper bound of adaptivity: the best schedule for every image, selected with knowledge of its score.

No policy can reach this bound, because the score is known only after the image is finished. The bound shows whether a
weak result comes from the policy or from the problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRICES = 200  # number of prices of a step, from 0 to the largest range of scores


def allocation(score_NB: Floats, steps_N: Sequence[int]) -> list[tuple[float, float]]:
    """Compute the best mean score at each mean number of steps if every image has its best fixed schedule.

    Each step has a price. Every image gets the schedule with the highest score minus price. When the price decreases,
    steps and score increase. Points between two prices are mixtures.

    Args:
        score_NB: Scores of B images under N schedules.
        steps_N: Number of steps of each schedule, in increasing order.

    Returns:
        Points (mean steps, mean score), both increasing.

    Example:
        >>> allocation(np.array([[0.5, 0.0], [0.5, 1.0]]), [4, 8])
        [(4.0, 0.25), (6.0, 0.75)]
    """
    steps = np.asarray(steps_N, dtype=np.float64)
    span = float(np.ptp(score_NB, axis=0).max()) or 1.0
    prices = np.concatenate([np.geomspace(span, span * 1e-6, PRICES), [0.0]])
    columns = np.arange(score_NB.shape[1])
    points: list[tuple[float, float]] = []
    for price in prices:
        # argmax returns the first of equal values, which has the fewest steps.
        choice_B = np.argmax(score_NB - price * steps[:, None], axis=0)
        point = (float(steps[choice_B].mean()), float(score_NB[choice_B, columns].mean()))
        if not points or point[0] > points[-1][0]:
            points.append(point)
    return points


def at_steps(points: Sequence[tuple[float, float]], steps: float) -> float:
    """Interpolate the score at a mean number of steps. Beyond the ends, the value of the end is returned.

    Example:
        >>> at_steps([(4.0, 0.0), (8.0, 1.0)], 5.0)
        0.25
    """
    x, y = zip(*points, strict=True)
    return float(np.interp(steps, x, y))
