"""Numbers as text, the same in reports, cards and on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

DECIMALS = 3  # at least


def signed_interval(interval: Sequence[float] | None) -> str:
    """``+0.031 [+0.010, +0.052]``; a dash where there is none."""
    if not is_interval(interval):
        return "–"
    width = abs(interval[2] - interval[1])
    # Two figures of what is not known: cosines differ in the fourth decimal.
    decimals = DECIMALS if width == 0 else min(max(DECIMALS, 1 + math.ceil(-math.log10(width))), 8)
    value, low, high = (signed(x, decimals) for x in interval)
    return f"{value} [{low}, {high}]"


def signed(value: float, decimals: int = DECIMALS) -> str:
    """Always with a sign, and that a true minus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def is_interval(interval: Sequence[float] | None) -> TypeGuard[Sequence[float]]:
    """Whether it is (value, low, high), all finite."""
    return interval is not None and len(interval) == 3 and all(x is not None and math.isfinite(x) for x in interval)
