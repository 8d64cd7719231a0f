"""Random search for the best schedule of every image, by the score of its finished image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Schedules = list[list[float]]  # one per image, or one for all
ScoreAll = Callable[[Schedules], Floats]
"""Schedules, one per image -> the score of each image (B,)."""


@dataclass(frozen=True)
class Search:
    """What a search for schedules of N steps found.

    Attributes:
        start_B: scores under the schedule it began with.
        shared_B: under the best schedule for all, chosen on the other half of the images.
        own_B: under the best one of each image.
        own: those schedules.
        tried: schedules per image.
    """

    start_B: Floats
    shared_B: Floats
    own_B: Floats
    own: Schedules
    tried: int


def search_schedules(
    score: ScoreAll, start: Sequence[float], images: int, candidates: int, rounds: int, seed: int = 0
) -> Search:
    """Many random schedules around one, the same for all images, then rounds of smaller changes to each image's best.

    Args:
        score: scores one schedule per image.
        start: the best fixed schedule known, 1.0 to 0.0: N steps.
        images: B, at least 2.
        candidates: random schedules of the first round, and of each later one.
        rounds: of changes to each image's own best.
        seed: of the random changes.
    """
    generator = np.random.default_rng(seed)
    begin = score([list(start)] * images)
    table = [begin]
    pool: Schedules = [list(start)]
    for _ in range(candidates):
        pool.append(vary(start, 0.7 * generator.random(), generator))
        table.append(score([pool[-1]] * images))
    score_CB = np.stack(table)
    best_B = score_CB.argmax(axis=0)
    own, own_B = [pool[c] for c in best_B], score_CB.max(axis=0)
    for round_ in range(rounds):
        scale = 0.3 / (round_ + 1)
        for _ in range(candidates):
            tried = [vary(times, scale, generator) for times in own]
            tried_B = score(tried)
            better_B = tried_B > own_B
            own = [new if better else old for new, old, better in zip(tried, own, better_B, strict=True)]
            own_B = np.where(better_B, tried_B, own_B)
    return Search(begin, _cross_fitted(score_CB), own_B, own, 1 + candidates * (1 + rounds))


def vary(times: Sequence[float], scale: float, generator: np.random.Generator) -> list[float]:
    """A schedule of as many steps whose step sizes are multiplied by random factors exp(scale * normal)."""
    size_N = -np.diff(np.asarray(times, dtype=np.float64)) * np.exp(scale * generator.standard_normal(len(times) - 1))
    rest_N = np.cumsum(size_N[::-1])[::-1]
    return [*(float(t) * times[0] / float(rest_N[0]) for t in rest_N), 0.0]


def _cross_fitted(score_CB: Floats) -> Floats:
    """Each half of the images under the candidate that was best on the other half: no candidate is lucky for free."""
    halves = np.arange(score_CB.shape[1]) % 2
    shared_B = np.empty(score_CB.shape[1])
    for half in (0, 1):
        shared_B[halves == half] = score_CB[score_CB[:, halves != half].mean(axis=1).argmax(), halves == half]
    return shared_B
