"""Numbers with their uncertainty: bootstrap intervals over images, nothing but numpy.

An image (prompt and seed) is the unit that is drawn anew. Two policies are compared on the same images, so
what is resampled is the list of differences: variance between images, which is most of it, cancels. All
intervals are 95 % percentile intervals and depend on the data, ``seed`` and ``resamples`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float, float]
"""(value, low, high)."""

# Resampled values held at once: 8 MB of indices, whatever the number of resamples.
CHUNK = 1_000_000


def paired_bootstrap(difference_B: ArrayLike, seed: int = 0, resamples: int = 10_000) -> Interval:
    """Mean of per-image differences and its interval. Plain values give the interval of a mean.

    Raises:
        ValueError: fewer than two differences, or one that is not finite.
    """
    return _bootstrap(difference_B, lambda drawn: drawn.mean(axis=1), seed, resamples)


def quantile_of_difference(difference_B: ArrayLike, quantile: float, seed: int = 0, resamples: int = 2_000) -> Interval:
    """A quantile of per-image differences and its interval: what a mean hides.

    ``quantile`` 0.1 answers "by how much do the worst-served tenth of the images lose at least?".

    Raises:
        ValueError: as ``paired_bootstrap``, or a quantile outside [0, 1].
    """
    return _bootstrap(difference_B, lambda drawn: np.quantile(drawn, quantile, axis=1), seed, resamples)


def two_way_bootstrap(difference_SB: ArrayLike, seed: int = 0, resamples: int = 10_000) -> Interval:
    """Mean over training runs and images, and its interval when both are drawn anew.

    The differences of several runs on the same images share those images, and those of one run share the run: an
    interval that resampled S x B values alone would be too narrow.

    Raises:
        ValueError: fewer than two runs or images, or a difference that is not finite.
    """
    table = np.asarray(difference_SB, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"got differences of shape {table.shape}, expected two or more runs by two or more images")
    _checked(table.ravel(), at_least=4)
    S, B = table.shape
    generator = np.random.default_rng(seed)
    # A resample weighs runs and images by how often they are drawn: no table is built anew.
    runs = generator.multinomial(S, np.full(S, 1 / S), resamples) / S
    images = generator.multinomial(B, np.full(B, 1 / B), resamples) / B
    drawn = np.einsum("rs,sb,rb->r", runs, table, images, optimize=True)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(table.mean()), float(low), float(high)


def mean_sd(values_B: ArrayLike) -> tuple[float, float]:
    """Mean and standard deviation of these very images (divided by B, as in metrics.jsonl)."""
    values = _checked(values_B, at_least=1)
    return float(values.mean()), float(values.std())


def spearman(x_B: ArrayLike, y_B: ArrayLike, seed: int = 0, resamples: int = 2_000) -> Interval | None:
    """Rank correlation (ties get their average rank) and its interval.

    None where it does not exist: fewer than three pairs, or one side is constant. Resamples in which a side
    happens to be constant are left out.

    Raises:
        ValueError: different lengths, or a value that is not finite.
    """
    x, y = _checked(x_B, at_least=0), _checked(y_B, at_least=0)
    if len(x) != len(y):
        raise ValueError(f"got {len(x)} and {len(y)} values, expected as many of one as of the other")
    rho = _rank_correlation(x, y) if len(x) >= 3 else None
    if rho is None:
        return None
    draws = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    drawn = [r for r in (_rank_correlation(x[i], y[i]) for i in draws) if r is not None]
    # No luck in any resample (three pairs, say): nothing is known beyond the range of a correlation.
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (-1.0, 1.0)
    return rho, float(low), float(high)


def ranks(values_B: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the average of their places."""
    _, place_B, count = np.unique(np.asarray(values_B), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place_B]


def _rank_correlation(x_B: NDArray[np.float64], y_B: NDArray[np.float64]) -> float | None:
    x, y = (r - r.mean() for r in (ranks(x_B), ranks(y_B)))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 0 else None


def _bootstrap(
    values_B: ArrayLike, statistic: Callable[[NDArray[Any]], NDArray[Any]], seed: int, resamples: int
) -> Interval:
    """``statistic`` maps (resamples, B) to (resamples,)."""
    values = _checked(values_B, at_least=2)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(values))
    drawn = [
        statistic(values[generator.integers(0, len(values), (min(rows, resamples - first), len(values)))])
        for first in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return float(statistic(values[None])[0]), float(low), float(high)


def _checked(values_B: ArrayLike, at_least: int) -> NDArray[np.float64]:
    values = np.asarray(values_B, dtype=np.float64)
    if values.ndim != 1 or len(values) < at_least:
        raise ValueError(f"got values of shape {values.shape}, expected a list of {at_least} or more numbers")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"got {bad} of {len(values)} values that are NaN or infinite, expected none")
    return values
