"""Intervals over training runs and images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tpdm.evaluation.statistics import Interval


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
    if not np.isfinite(table).all():
        raise ValueError(f"got {int((~np.isfinite(table)).sum())} differences that are NaN or infinite, expected none")
    S, B = table.shape
    generator = np.random.default_rng(seed)
    # A resample weighs runs and images by how often they are drawn: no table is built anew.
    runs = generator.multinomial(S, np.full(S, 1 / S), resamples) / S
    images = generator.multinomial(B, np.full(B, 1 / B), resamples) / B
    drawn = np.einsum("rs,sb,rb->r", runs, table, images, optimize=True)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(table.mean()), float(low), float(high)
