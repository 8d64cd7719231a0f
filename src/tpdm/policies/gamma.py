"""Gamma conditioning: one TPM for a range of gamma, and quality settings in [0, 1] for users.

The TPM reads the position of gamma in its range, which is linear in the log of a step's price. Eq. (9) with gamma
near 1 prices a step at about (1 - gamma) / 2 of the score, so that equal moves of the position change the price by
equal factors. -1 is the low end of the range (few steps), +1 the high end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError

MIN_RISE = 1e-3  # steps between neighbors of a calibration that were measured as equal or falling


def check_range(low: float, high: float) -> None:
    """Check a range of gamma.

    Raises:
        ConfigError: 0 < low < high < 1 does not hold.

    Example:
        >>> check_range(0.9, 0.99)
    """
    if not 0.0 < low < high < 1.0:
        raise ConfigError(f"gamma_range is {low:g} to {high:g}. It must satisfy 0 < low < high < 1. Try 0.9 to 0.998.")


def gamma_position(gamma_B: Tensor, low: float, high: float) -> Tensor:
    """Convert gammas to positions in the range.

    Args:
        gamma_B: Gammas in [low, high].
        low: Low end of the range, > 0.
        high: High end of the range, < 1.

    Returns:
        Positions from -1 at ``low`` to +1 at ``high``, fp32, shape of ``gamma_B``.

    Example:
        >>> [round(x, 4) for x in gamma_position(torch.tensor([0.9, 0.997]), 0.9, 0.999).tolist()]
        [-1.0, 0.5229]
    """
    price_B = torch.log1p(-gamma_B.float())
    first, last = math.log1p(-low), math.log1p(-high)
    return 2.0 * (price_B - first) / (last - first) - 1.0


def gamma_at(share: float, low: float, high: float) -> float:
    """Return the gamma at a share of the way from ``low`` (0) to ``high`` (1), in log price.

    Example:
        >>> round(gamma_at(0.5, 0.9, 0.999), 6)
        0.99
    """
    if share in (0.0, 1.0):
        return (low, high)[int(share)]  # exactly, because a rounded end would be outside the range
    return -math.expm1(math.log1p(-low) + share * (math.log1p(-high) - math.log1p(-low)))


def spread_gammas(count: int, low: float, high: float, offset: float = 0.5) -> list[float]:
    """Return one gamma from each of ``count`` equal parts of the range, in log price.

    Args:
        count: Number of gammas, >= 1.
        low: Low end of the range.
        high: High end of the range.
        offset: Position within a part, in [0, 1).

    Example:
        >>> [round(gamma, 4) for gamma in spread_gammas(2, 0.9, 0.999)]
        [0.9684, 0.9968]
    """
    return [gamma_at((i + offset) / count, low, high) for i in range(count)]


def quality_to_gamma(quality: float, gammas: Sequence[float], mean_steps: Sequence[float]) -> float:
    """Convert a quality setting to a gamma.

    Quality 0 is the first gamma and 1 the last. Between them, mean steps change by equal ratios: halfway between 4 and
    16 steps are 8.

    Args:
        quality: Quality setting in [0, 1].
        gammas: Calibrated gammas, rising, at least two.
        mean_steps: Mean steps that were measured at these gammas.

    Raises:
        ConfigError: ``quality`` is out of range, or there are fewer than two gammas.

    Example:
        >>> gammas, mean_steps = [0.9, 0.99, 0.999], [4.0, 8.0, 16.0]
        >>> round(quality_to_gamma(0.5, gammas, mean_steps), 6)
        0.99
    """
    if not 0.0 <= quality <= 1.0:
        raise ConfigError(f"quality is {quality:g}. It must be from 0 (fewest steps) to 1 (most steps). Correct it.")
    rising = _rising(mean_steps)
    target = rising[0] * (rising[-1] / rising[0]) ** quality
    for i in range(len(gammas) - 1):
        if target <= rising[i + 1] or i == len(gammas) - 2:
            share = (target - rising[i]) / (rising[i + 1] - rising[i])
            return gamma_at(min(max(share, 0.0), 1.0), gammas[i], gammas[i + 1])
    raise ConfigError(f"There are {len(gammas)} calibrated gammas. There must be at least two. Train the TPM again.")


def steps_to_quality(steps: float, mean_steps: Sequence[float]) -> float:
    """Convert a mean number of steps to a quality setting.

    Args:
        steps: Mean number of steps, > 0. Numbers outside the calibration give the nearer end.
        mean_steps: Mean steps of the calibrated gammas, rising, at least two.

    Example:
        >>> steps_to_quality(8.0, [4.0, 8.0, 16.0]), steps_to_quality(100.0, [4.0, 8.0, 16.0])
        (0.5, 1.0)
    """
    rising = _rising(mean_steps)
    return min(max(math.log(steps / rising[0]) / math.log(rising[-1] / rising[0]), 0.0), 1.0)


def _rising(mean_steps: Sequence[float]) -> list[float]:
    rising: list[float] = []
    for measured in mean_steps:
        rising.append(max(measured, rising[-1] + MIN_RISE) if rising else measured)
    return rising
