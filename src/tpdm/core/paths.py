"""The flow path x_t = (1 - t) x_0 + t eps with velocity v = eps - x_0, and fixed grids of times.

t = 1 is noise, t = 0 the image. Times have shape (B,), one per image; x, v, eps any shape (B, ...). sigma is
k-diffusion's noise level, noise over signal, in [0, inf]; log_snr = ln(signal^2 / noise^2) = -2 ln sigma.
A grid for n steps holds n + 1 fp32 times from exactly 1.0 down to exactly 0.0, strictly decreasing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tpdm.devices import wide
from tpdm.types import ConfigError


def rows(value_B: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to broadcast one value per image over ``like`` of shape (B, ...)."""
    return value_B.view(-1, *[1] * (like.ndim - 1))


def flow_interpolate(x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t eps."""
    return (1.0 - rows(t_B, x0)) * x0 + rows(t_B, x0) * eps


def flow_x0(x: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """The image that a velocity points at: x_0 = x_t - t v."""
    return x - rows(t_B, x) * v


def flow_eps(x: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """The noise that a velocity comes from: eps = x_t + (1 - t) v."""
    return x + (1.0 - rows(t_B, x)) * v


def flow_alpha_sigma(t_B: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise scale (1 - t, t), float64 on the CPU."""
    return 1.0 - wide(t_B), wide(t_B)


def flow_sigma(t_B: Tensor) -> Tensor:
    """sigma = t / (1 - t), inf at t = 1."""
    return t_B / (1.0 - t_B)


def flow_time_of_sigma(sigma_B: Tensor) -> Tensor:
    """t = sigma / (1 + sigma) = 1 / (1 + 1 / sigma), also at sigma = inf."""
    return 1.0 / (1.0 + 1.0 / sigma_B)


def flow_log_snr(t_B: Tensor) -> Tensor:
    """log_snr = 2 ln((1 - t) / t), inf at t = 0 and -inf at t = 1."""
    return 2.0 * (torch.log1p(-t_B) - torch.log(t_B))


def flow_time_of_log_snr(log_snr_B: Tensor) -> Tensor:
    """t = 1 / (1 + exp(log_snr / 2))."""
    return torch.sigmoid(-0.5 * log_snr_B)


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
