"""Bootstrap intervals over prompts, and rank correlations.

A prompt with all its images is the unit that is resampled, because images of one prompt are correlated. Two policies
are compared on the same images, so per-image differences are resampled and the variance between images cancels. All
intervals are 95 % percentile intervals. They depend only on the data, ``seed`` and ``resamples``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float, float]
"""(value, low, high)."""

# Number of resampled values in memory at once: 8 MB of indices.
CHUNK = 1_000_000


def samples_of(prompts: Sequence[str]) -> int:
    """Return the number of consecutive images per prompt, or 1 if it differs between prompts.

    Example:
        >>> samples_of(["a", "a", "b", "b"]), samples_of(["a", "a", "b"])
        (2, 1)
    """
    runs = [len([*images]) for _, images in groupby(prompts)]
    return runs[0] if len(set(runs)) == 1 else 1


def paired_bootstrap(difference_B: ArrayLike, seed: int = 0, resamples: int = 10_000, *, samples: int = 1) -> Interval:
    """Return the mean of per-image differences and its interval. Plain values give the interval of a mean.

    Args:
        difference_B: One number per image.
        seed: Seed of the bootstrap.
        resamples: Number of resamples.
        samples: Number of consecutive images per prompt.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: If there are fewer than two prompts, or a difference is not finite.

    Example:
        >>> mean, low, high = paired_bootstrap([0.1, 0.2, 0.1, 0.3])
        >>> round(mean, 3), low > 0
        (0.175, True)
    """
    mean_P = _checked(difference_B, at_least=2).reshape(-1, samples).mean(axis=1)
    return _bootstrap(mean_P, lambda drawn: drawn.mean(axis=1), seed, resamples)


def quantile_of_difference(
    difference_B: ArrayLike,
    quantile: float,
    seed: int = 0,
    resamples: int = 2_000,
    *,
    samples: int = 1,
    odds_B: ArrayLike | None = None,
) -> Interval:
    """Return a quantile of per-image differences and its interval.

    A quantile shows losses that a mean hides. With ``quantile`` 0.1, 10 % of the images have this difference or less.

    Args:
        difference_B: One number per image, or one number per possible outcome of each image.
        quantile: Quantile in [0, 1].
        seed: Seed of the bootstrap.
        resamples: Number of resamples.
        samples: Number of consecutive values per prompt.
        odds_B: Probability of each value. Default: all values are equally likely.

    Returns:
        (quantile, low, high).

    Raises:
        ValueError: As for ``paired_bootstrap``, or if the quantile is outside [0, 1].

    Example:
        >>> quantile_of_difference([-3.0, 0.0, 1.0, 2.0], 0.5)[0]
        0.0
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}. It must be in the range 0 to 1. Try quantile=0.1.")
    difference_B = _checked(difference_B, at_least=2)
    chance_B = np.ones(len(difference_B)) if odds_B is None else _checked(odds_B, at_least=2)
    order_B = np.argsort(difference_B, kind="stable")
    prompts, prompt_B = len(difference_B) // samples, order_B // samples

    def drawn(times_RP: NDArray[Any]) -> NDArray[np.float64]:
        """Return the quantile of each resample, given how often it contains each prompt."""
        reached_RB = np.cumsum(times_RP[:, prompt_B] * chance_B[order_B], axis=1)
        target_R = np.maximum(quantile * reached_RB[:, -1] * (1 - 1e-12), np.finfo(float).tiny)
        return np.asarray(difference_B[order_B][(reached_RB < target_R[:, None]).sum(axis=1)])

    generator, rows = np.random.default_rng(seed), max(1, CHUNK // len(difference_B))
    even = np.full(prompts, 1 / prompts)
    quantiles = [
        drawn(generator.multinomial(prompts, even, min(rows, resamples - first))) for first in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(quantiles), (0.025, 0.975))
    return float(drawn(np.ones((1, prompts)))[0]), float(low), float(high)


def spearman(
    x_B: ArrayLike, y_B: ArrayLike, seed: int = 0, resamples: int = 2_000, *, samples: int = 1
) -> Interval | None:
    """Return the rank correlation (ties get their average rank) and its interval.

    Resamples in which one side is constant are left out.

    Args:
        x_B: First value of each pair.
        y_B: Second value of each pair.
        seed: Seed of the bootstrap.
        resamples: Number of resamples.
        samples: Number of consecutive pairs per prompt.

    Returns:
        (correlation, low, high). None if there are fewer than three pairs, or if one side is constant.

    Raises:
        ValueError: If the lengths differ, or a value is not finite.

    Example:
        >>> spearman([1, 2, 3, 4], [1, 4, 9, 16])[0]
        1.0
        >>> spearman([1, 2, 3], [5, 5, 5]) is None
        True
    """
    x, y = _checked(x_B, at_least=0), _checked(y_B, at_least=0)
    if len(x) != len(y):
        raise ValueError(f"x_B and y_B have {len(x)} and {len(y)} values. They must have the same length. Check both.")
    rho = _rank_correlation(x, y) if len(x) >= 3 else None
    if rho is None:
        return None
    prompts = len(x) // samples
    first = np.random.default_rng(seed).integers(0, prompts, (resamples, prompts, 1)) * samples
    draws = (first + np.arange(samples)).reshape(resamples, -1)
    drawn = [r for r in (_rank_correlation(x[i], y[i]) for i in draws) if r is not None]
    # If no resample has a correlation, only its range is known.
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (-1.0, 1.0)
    return rho, float(low), float(high)


def ranks(values_B: ArrayLike) -> NDArray[np.float64]:
    """Return ranks from 1. Equal values share their average rank.

    Example:
        >>> ranks([10, 30, 30]).tolist()
        [1.0, 2.5, 2.5]
    """
    _, place_B, count = np.unique(np.asarray(values_B), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place_B]


def _rank_correlation(x_B: NDArray[np.float64], y_B: NDArray[np.float64]) -> float | None:
    x, y = (r - r.mean() for r in (ranks(x_B), ranks(y_B)))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 0 else None


def _bootstrap(
    values_B: ArrayLike, statistic: Callable[[NDArray[Any]], NDArray[Any]], seed: int, resamples: int
) -> Interval:
    """Resample values. ``statistic`` maps (resamples, B) to (resamples,)."""
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
        raise ValueError(f"values_B has the shape {values.shape}. It must be a list of {at_least} or more numbers.")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(
            f"values_B contains {bad} of {len(values)} values that are NaN or infinite. All must be finite."
        )
    return values
