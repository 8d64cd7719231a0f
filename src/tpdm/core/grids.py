"""Schedules from formulas: uniform times, SD3's shifted times, and Karras's noise levels.

A grid of n steps is an fp32 tensor of n + 1 times on the CPU. It falls strictly from exactly 1.0 to exactly 0.0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError


def uniform(n: int) -> Tensor:
    """Return times at even distances: t_i = 1 - i / n.

    Args:
        n: Number of steps, >= 1.

    Raises:
        ConfigError: ``n`` is out of range.

    Example:
        >>> uniform(4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """
    return _grid(torch.arange(_steps(n), -1, -1, dtype=torch.float64, device="cpu") / n, f"uniform({n})")


def shifted(n: int, shift: float) -> Tensor:
    """Return SD3's shifted times: t = s u / (1 + (s - 1) u) for the uniform times u.

    Args:
        n: Number of steps, >= 1.
        shift: The shift s > 0. Values above 1 put more steps near noise. SD3 uses 3.

    Raises:
        ConfigError: An argument is out of range, or two times are equal in fp32.

    Example:
        >>> shifted(2, shift=3.0)
        tensor([1.0000, 0.7500, 0.0000])
    """
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"shift is {shift}. It must be a finite number above 0. SD3 uses 3.")
    u_N = torch.arange(_steps(n), -1, -1, dtype=torch.float64, device="cpu") / n
    return _grid(shift * u_N / (1.0 + (shift - 1.0) * u_N), f"shifted({n}, {shift})")


def karras(n: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Return the noise levels of Karras et al. (EDM, arXiv 2206.00364, eq. 5) as times of the flow path.

    sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n, then 0, where
    sigma is noise over signal. Times are t = sigma / (1 + sigma), divided by the largest, so that the grid starts at
    1.0. The division multiplies the times by 1 + 1 / sigma_max. The defaults are EDM's.

    Args:
        n: Number of steps, >= 1.
        rho: Exponent > 0. Larger values put more steps near the image.
        sigma_min: Last noise level above 0.
        sigma_max: First noise level, above ``sigma_min``.

    Raises:
        ConfigError: An argument is out of range, or two times are equal in fp32.

    Example:
        >>> karras(2)
        tensor([1.0000, 0.0020, 0.0000])
    """
    if not (math.isfinite(rho) and rho > 0):
        raise ConfigError(f"rho is {rho}. It must be a finite number above 0. EDM uses 7.")
    if not (0 < sigma_min < sigma_max < math.inf):
        raise ConfigError(
            f"sigma_min is {sigma_min} and sigma_max is {sigma_max}. They must satisfy 0 < min < max < inf. EDM uses "
            "0.002 and 80."
        )
    part_N = torch.arange(_steps(n), dtype=torch.float64, device="cpu") / max(n - 1, 1)
    top, bottom = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)
    sigma_N = (top + part_N * (bottom - top)) ** rho
    t_N = sigma_N / (1.0 + sigma_N)
    return _grid(torch.cat([t_N / t_N[0], t_N.new_zeros(1)]), f"karras({n}, {rho}, {sigma_min}, {sigma_max})")


def _steps(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigError(f"n is {n!r}. It must be a whole number of at least 1. Try n=28.")
    return n


def _grid(t_N: Tensor, name: str) -> Tensor:
    grid_N = t_N.float()
    if not bool((grid_N.diff() < 0).all()):
        raise ConfigError(
            f"{name} has times that are equal in fp32. They must fall strictly. Use fewer steps or a milder spacing."
        )
    return grid_N
