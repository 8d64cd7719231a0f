"""Schedules from formulas: uniform times, shifted ones, and Karras's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError


def uniform(n: int) -> Tensor:
    """t_i = 1 - i / n."""
    return _grid(torch.arange(_steps(n), -1, -1, dtype=torch.float64, device="cpu") / n, f"uniform({n})")


def shifted(n: int, shift: float) -> Tensor:
    """t = s u / (1 + (s - 1) u) of the uniform grid u: SD3's shift; s > 1 spends more steps near noise."""
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"Got shift={shift}; it must be a finite number above 0 (SD3 uses 3).")
    u_N = torch.arange(_steps(n), -1, -1, dtype=torch.float64, device="cpu") / n
    return _grid(shift * u_N / (1.0 + (shift - 1.0) * u_N), f"shifted({n}, {shift})")


def karras(n: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Karras et al. (EDM, arXiv 2206.00364, eq. 5) on the flow path; the defaults are EDM's.

    sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n, in
    k-diffusion's unit (noise over signal); t = sigma / (1 + sigma), divided by the largest so that the
    grid starts at 1.0; then 0. The division moves the times by the factor 1 + 1 / sigma_max.
    """
    if not (math.isfinite(rho) and rho > 0):
        raise ConfigError(f"Got rho={rho}; it must be a finite number above 0 (EDM uses 7).")
    if not (0 < sigma_min < sigma_max < math.inf):
        raise ConfigError(f"Got sigma_min={sigma_min}, sigma_max={sigma_max}; they must satisfy 0 < min < max < inf.")
    part_N = torch.arange(_steps(n), dtype=torch.float64, device="cpu") / max(n - 1, 1)
    top, bottom = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)
    sigma_N = (top + part_N * (bottom - top)) ** rho
    t_N = sigma_N / (1.0 + sigma_N)
    return _grid(torch.cat([t_N / t_N[0], t_N.new_zeros(1)]), f"karras({n}, {rho}, {sigma_min}, {sigma_max})")


def _steps(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigError(f"Got n={n!r} steps; pass a whole number of at least 1.")
    return n


def _grid(t_N: Tensor, name: str) -> Tensor:
    grid_N = t_N.float()
    if not bool((grid_N.diff() < 0).all()):
        raise ConfigError(f"Got {name}, whose times coincide in fp32; use fewer steps or a milder spacing.")
    return grid_N
