"""The flow path x_t = (1 - t) x_0 + t eps with velocity v = eps - x_0, and fixed grids of times.

t = 1 is noise, t = 0 the image. Times have shape (B,), one per image; x, v, eps any shape (B, ...). sigma is
k-diffusion's noise level, noise over signal, in [0, inf]; log_snr = ln(signal^2 / noise^2) = -2 ln sigma.
A grid for n steps holds n + 1 fp32 times from exactly 1.0 down to exactly 0.0, strictly decreasing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tpdm.core.device import wide
from tpdm.core.errors import ConfigError


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


@dataclass(frozen=True)
class VPPath:
    """A variance-preserving path in continuous time; build it with ``vp_path``.

    ln abar is linear between knots: the final value at t = 0, that of timestep k at t = (k + 1) / T, k < T. The
    arithmetic is float64 on the CPU; what is said to be fp32 lies on the device of its argument.

    Attributes:
        log_abar_K: float64 on the CPU, T + 1 knots, decreasing.
    """

    log_abar_K: Tensor

    def timestep(self, t_B: Tensor) -> Tensor:
        """What the network is fed: T t - 1, fp32 in [0, T - 1] (0 below the first knot)."""
        return _back((self._position(t_B) - 1.0).clamp_min(0.0), t_B)

    def time_of_timestep(self, timestep_B: Tensor) -> Tensor:
        """t = (timestep + 1) / T, fp32."""
        return _back((wide(timestep_B) + 1.0) / (self.log_abar_K.numel() - 1), timestep_B)

    def log_alphas_cumprod(self, t_B: Tensor) -> Tensor:
        """ln abar_t, float64 on the CPU, <= 0."""
        place_B = self._position(t_B)
        log_abar_K = self.log_abar_K.to(place_B)  # as it is, but for shapes alone
        left_B = place_B.floor().long().clamp(0, log_abar_K.numel() - 2)
        return torch.lerp(log_abar_K[left_B], log_abar_K[left_B + 1], place_B - left_B)

    def alpha_sigma(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale (sqrt(abar), sqrt(1 - abar)), float64 on the CPU; their squares sum to 1."""
        log_abar_B = self.log_alphas_cumprod(t_B)
        return torch.exp(0.5 * log_abar_B), torch.sqrt(-torch.expm1(log_abar_B))

    def sigma(self, t_B: Tensor) -> Tensor:
        """sqrt((1 - abar) / abar), fp32."""
        return _back(torch.sqrt(torch.expm1(-self.log_alphas_cumprod(t_B))), t_B)

    def time_of_sigma(self, sigma_B: Tensor) -> Tensor:
        """Inverse of ``sigma``; beyond the last knot it is 1."""
        return _back(self._time_of_log_abar(-torch.log1p(wide(sigma_B) ** 2)), sigma_B)

    def log_snr(self, t_B: Tensor) -> Tensor:
        """ln(abar / (1 - abar)), fp32; inf at t = 0 where abar ends at 1."""
        log_abar_B = self.log_alphas_cumprod(t_B)
        return _back(log_abar_B - torch.log(-torch.expm1(log_abar_B)), t_B)

    def time_of_log_snr(self, log_snr_B: Tensor) -> Tensor:
        """Inverse of ``log_snr``; beyond the last knot it is 1."""
        return _back(self._time_of_log_abar(torch.nn.functional.logsigmoid(wide(log_snr_B))), log_snr_B)

    def x0_eps(self, x: Tensor, output: Tensor, t_B: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
        """(x_0, eps) from a network output, where x = a x_0 + s eps, a = sqrt(abar), s = sqrt(1 - abar).

        "epsilon": x_0 = (x - s eps) / a. "v_prediction": v = a eps - s x_0, x_0 = a x - s v, eps = a v + s x.
        abar is rounded to the working dtype first, as in diffusers, whose DDIM this then equals bit by bit.
        """
        abar = self.abar(t_B, x)
        alpha, sigma = abar**0.5, (1.0 - abar) ** 0.5
        if prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        if prediction == "v_prediction":
            return alpha * x - sigma * output, alpha * output + sigma * x
        raise ConfigError(f"Got prediction type {prediction!r}; choose 'epsilon' or 'v_prediction'.")

    def interpolate(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, in x_0's dtype, with abar rounded to it as in diffusers."""
        abar = self.abar(t_B, x0)
        return abar**0.5 * x0 + (1.0 - abar) ** 0.5 * eps

    def abar(self, t_B: Tensor, like: Tensor) -> Tensor:
        """abar_t, to be broadcast over ``like``, on its device and in its dtype."""
        return rows(torch.exp(self.log_alphas_cumprod(t_B)).to(like.device, like.dtype), like)

    def _position(self, t_B: Tensor) -> Tensor:
        # (k + 1) / 1000 has no exact fp32; snapping returns the integer timestep that was meant (fp32 of T t
        # is 6e-5 off at most for T = 1000), without which no stock scheduler is met exactly.
        place_B = wide(t_B) * (self.log_abar_K.numel() - 1)
        return torch.where((place_B - place_B.round()).abs() < 1e-4, place_B.round(), place_B)

    def _time_of_log_abar(self, log_abar_B: Tensor) -> Tensor:
        rising_K = -self.log_abar_K.to(log_abar_B)
        right_B = torch.searchsorted(rising_K, -log_abar_B).clamp(1, rising_K.numel() - 1)
        low_B, high_B = rising_K[right_B - 1], rising_K[right_B]
        part_B = (-log_abar_B - low_B) / (high_B - low_B).clamp_min(1e-300)
        return (right_B - 1 + part_B.clamp(0.0, 1.0)) / (rising_K.numel() - 1)


def _back(value_B: Tensor, like_B: Tensor) -> Tensor:
    """What was computed of an argument, in fp32 on its device."""
    return value_B.to(like_B.device, torch.float32)


def vp_path(alphas_cumprod_K: Tensor, final: float = 1.0) -> VPPath:
    """The path of a scheduler's ``alphas_cumprod`` (T values, strictly decreasing in (0, 1)).

    Args:
        alphas_cumprod_K: abar of timesteps 0 ... T - 1.
        final: abar at t = 0; 1 leaves no noise; set_alpha_to_one=False means alphas_cumprod_K[0].
    """
    abar_K = wide(alphas_cumprod_K.detach())
    if abar_K.numel() < 2 or not bool(((abar_K > 0) & (abar_K < 1)).all() and (abar_K.diff() < 0).all()):
        raise ConfigError(
            "Got alphas_cumprod that do not strictly decrease within (0, 1); use a scheduler whose last "
            "value is above 0 (no zero-terminal-SNR rescaling)."
        )
    if not float(abar_K[0]) <= final <= 1.0:
        raise ConfigError(f"Got final={final}; it must lie between alphas_cumprod[0]={float(abar_K[0])} and 1.")
    return VPPath(torch.cat([abar_K.new_tensor([final]), abar_K]).log())
