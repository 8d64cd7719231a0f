"""Numbers, intervals and durations as text, for reports, model cards and the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

DECIMALS = 3  # at least


def signed_interval(interval: Sequence[float] | None) -> str:
    """Format a difference and its confidence interval.

    Args:
        interval: (value, low, high). None, or a value that is not finite, gives a dash.

    Returns:
        Text with at least three decimals, and with two significant digits of the width of the interval.

    Example:
        >>> signed_interval([0.031, 0.01, 0.052])
        '+0.031 [+0.010, +0.052]'
        >>> signed_interval(None)
        '–'
    """
    if not is_interval(interval):
        return "–"
    width = abs(interval[2] - interval[1])
    # Two digits of the width: cosines differ in the fourth decimal.
    decimals = DECIMALS if width == 0 else min(max(DECIMALS, 1 + math.ceil(-math.log10(width))), 8)
    value, low, high = (signed(x, decimals) for x in interval)
    return f"{value} [{low}, {high}]"


def signed(value: float, decimals: int = DECIMALS) -> str:
    """Format a number with its sign, using a true minus sign.

    Example:
        >>> signed(-0.5)
        '−0.500'
    """
    return f"{value:+.{decimals}f}".replace("-", "−")


def is_interval(interval: Sequence[float] | None) -> TypeGuard[Sequence[float]]:
    """Return whether the argument is (value, low, high), all finite.

    Example:
        >>> is_interval([0.0, -1.0, 1.0]), is_interval([0.0, math.nan, 1.0])
        (True, False)
    """
    return interval is not None and len(interval) == 3 and all(x is not None and math.isfinite(x) for x in interval)


def plural(count: int, noun: str) -> str:
    """Format a count with its noun.

    Example:
        >>> plural(1, "step"), plural(7, "step")
        ('1 step', '7 steps')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Format a duration with its two largest units.

    Example:
        >>> duration(45), duration(200), duration(7500)
        ('45 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
