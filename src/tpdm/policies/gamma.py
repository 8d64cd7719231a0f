"""The dial: one TPM for a range of gamma, told which one by a number that is linear in the log of a step's price.

Eq. (9) with gamma near 1 prices a step at about (1 - gamma) / 2 of the score, so that equal moves of the dial change
that price by equal factors. -1 is the low end of the range (few steps), +1 the high one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError

MIN_RISE = 1e-3  # steps between neighbours of a calibration: what was measured flat or falling is read as level


def check_range(low: float, high: float) -> None:
    """Refuses a range that is none.

    Raises:
        ConfigError: not 0 < low < high < 1.
    """
    if not 0.0 < low < high < 1.0:
        raise ConfigError(f"got gammas from {low:g} to {high:g}, expected 0 < low < high < 1; correct the range.")


def gamma_position(gamma_B: Tensor, low: float, high: float) -> Tensor:
    """Where gammas stand between the ends: -1 at ``low``, +1 at ``high``; fp32, the shape of ``gamma_B``."""
    price_B = torch.log1p(-gamma_B.float())
    first, last = math.log1p(-low), math.log1p(-high)
    return 2.0 * (price_B - first) / (last - first) - 1.0


def gamma_at(share: float, low: float, high: float) -> float:
    """The gamma at a share of the way from ``low`` (0) to ``high`` (1)."""
    if share in (0.0, 1.0):
        return (low, high)[int(share)]  # exactly: a rounded end would lie outside the range
    return -math.expm1(math.log1p(-low) + share * (math.log1p(-high) - math.log1p(-low)))


def spread_gammas(count: int, low: float, high: float, offset: float = 0.5) -> list[float]:
    """``count`` gammas, one in each equal part of the range; ``offset`` in [0, 1) is the place within the part."""
    return [gamma_at((i + offset) / count, low, high) for i in range(count)]


def quality_to_gamma(quality: float, gammas: Sequence[float], mean_steps: Sequence[float]) -> float:
    """The gamma whose mean number of steps lies at a share of the way, in ratios, between the fewest and the most.

    Quality 0 is the first gamma and 1 the last; halfway between 4 and 16 steps are 8.

    Args:
        quality: in [0, 1].
        gammas: rising, at least two, as calibrated.
        mean_steps: that were measured at them.

    Raises:
        ConfigError: the quality lies outside.
    """
    if not 0.0 <= quality <= 1.0:
        raise ConfigError(f"got quality {quality:g}, expected a number from 0 (fewest steps) to 1 (most); correct it.")
    rising = _rising(mean_steps)
    wanted = rising[0] * (rising[-1] / rising[0]) ** quality
    for i in range(len(gammas) - 1):
        if wanted <= rising[i + 1] or i == len(gammas) - 2:
            share = (wanted - rising[i]) / (rising[i + 1] - rising[i])
            return gamma_at(min(max(share, 0.0), 1.0), gammas[i], gammas[i + 1])
    raise ConfigError(f"got {len(gammas)} calibrated gammas, expected at least two; calibrate the dial again.")


def steps_to_quality(wanted: float, mean_steps: Sequence[float]) -> float:
    """The quality at which the calibration expects so many steps on average; the nearer end beyond its reach.

    Args:
        wanted: mean number of steps, above 0.
        mean_steps: of the calibrated gammas, which rise; at least two.
    """
    rising = _rising(mean_steps)
    return min(max(math.log(wanted / rising[0]) / math.log(rising[-1] / rising[0]), 0.0), 1.0)


def _rising(mean_steps: Sequence[float]) -> list[float]:
    rising: list[float] = []
    for steps in mean_steps:
        rising.append(max(steps, rising[-1] + MIN_RISE) if rising else steps)
    return rising
