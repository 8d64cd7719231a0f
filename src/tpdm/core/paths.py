"""Paths from noise to image: the flow path, and the variance-preserving (VP) path of diffusion models.

A path is x_t = alpha_t x_0 + sigma_t eps, with t = 1 for noise and t = 0 for the image. Times have shape (B,), one per
image. x, x_0 and eps have any shape (B, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tpdm.core.device import wide
from tpdm.core.errors import ConfigError

PREDICTIONS = ("epsilon", "v_prediction")
"""What a network on the VP path can predict, in the words of diffusers."""


def rows(value_B: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per image, so that it broadcasts over a batch.

    Args:
        value_B: Values, shape (B,).
        like: Batch of shape (B, ...).

    Returns:
        The values, shape (B, 1, ..., 1).

    Example:
        >>> rows(torch.ones(2), torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 1, 1, 1])
    """
    return value_B.view(-1, *[1] * (like.ndim - 1))


class Path(Protocol):
    """What a solver needs to know about a path and about the network that was trained on it."""

    def alpha_sigma(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal and noise scale at times t, float64 on the CPU."""
        ...

    def x0(self, x: Tensor, output: Tensor, t_B: Tensor) -> Tensor:
        """Return the image x_0 that the network output implies at (x, t)."""
        ...

    def result_dtype(self, x: Tensor, output: Tensor) -> torch.dtype:
        """Return the dtype of the next x, as the stock scheduler of this path has it."""
        ...


def flow_interpolate(x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """Add noise on the flow path: x_t = (1 - t) x_0 + t eps.

    Args:
        x0: Images, shape (B, ...).
        eps: Noise, same shape.
        t_B: Times in [0, 1].

    Example:
        >>> flow_interpolate(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
        tensor([[0.7500, 0.7500]])
    """
    return (1.0 - rows(t_B, x0)) * x0 + rows(t_B, x0) * eps


@dataclass(frozen=True)
class FlowPath:
    """The flow path x_t = (1 - t) x_0 + t eps, on which the network predicts the velocity v = eps - x_0.

    Example:
        >>> path, image, noise = FlowPath(), torch.ones(1, 2), torch.zeros(1, 2)
        >>> x = flow_interpolate(image, noise, torch.tensor([0.25]))
        >>> path.x0(x, noise - image, torch.tensor([0.25]))
        tensor([[1., 1.]])
    """

    def alpha_sigma(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - t, t), float64 on the CPU."""
        return 1.0 - wide(t_B), wide(t_B)

    def x0(self, x: Tensor, output: Tensor, t_B: Tensor) -> Tensor:
        """Return x_0 = x_t - t v."""
        return x - rows(t_B, x) * output

    def result_dtype(self, x: Tensor, output: Tensor) -> torch.dtype:
        """Return the output's dtype, as ``FlowMatchEulerDiscreteScheduler`` does."""
        return output.dtype


@dataclass(frozen=True)
class VPPath:
    """A variance-preserving path in continuous time. Create it with :func:`vp_path`.

    ln abar is linear between knots. The knot at t = 0 is the final value. The knot at t = (k + 1) / T is that of
    timestep k < T. All arithmetic is float64 on the CPU. Results that are fp32 are on the device of the argument.

    Attributes:
        log_abar_K: ln abar at T + 1 knots, decreasing, float64 on the CPU.
        prediction: What the network predicts, one of ``PREDICTIONS``.

    Raises:
        ConfigError: ``prediction`` is unknown.
    """

    log_abar_K: Tensor
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ConfigError(
                f"prediction is {self.prediction!r}. It must be 'epsilon' or 'v_prediction'. Correct the scheduler."
            )

    def timestep(self, t_B: Tensor) -> Tensor:
        """Return the timestep that the network gets: T t - 1, fp32 in [0, T - 1] (0 below the first knot)."""
        return _fp32_like((self._position(t_B) - 1.0).clamp_min(0.0), t_B)

    def time_of_timestep(self, timestep_B: Tensor) -> Tensor:
        """Return t = (timestep + 1) / T, fp32."""
        return _fp32_like((wide(timestep_B) + 1.0) / (self.log_abar_K.numel() - 1), timestep_B)

    def log_alphas_cumprod(self, t_B: Tensor) -> Tensor:
        """Return ln abar_t, float64 on the CPU, <= 0."""
        position_B = self._position(t_B)
        log_abar_K = self.log_abar_K.to(position_B)  # changes only on the meta device
        left_B = position_B.floor().long().clamp(0, log_abar_K.numel() - 2)
        return torch.lerp(log_abar_K[left_B], log_abar_K[left_B + 1], position_B - left_B)

    def alpha_sigma(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sqrt(abar), sqrt(1 - abar)), float64 on the CPU. Their squares sum to 1."""
        log_abar_B = self.log_alphas_cumprod(t_B)
        return torch.exp(0.5 * log_abar_B), torch.sqrt(-torch.expm1(log_abar_B))

    def sigma(self, t_B: Tensor) -> Tensor:
        """Return noise over signal, sqrt((1 - abar) / abar), fp32."""
        return _fp32_like(torch.sqrt(torch.expm1(-self.log_alphas_cumprod(t_B))), t_B)

    def x0_eps(self, x: Tensor, output: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Split x into image and noise, with a = sqrt(abar) and s = sqrt(1 - abar).

        "epsilon": x_0 = (x - s eps) / a. "v_prediction": v = a eps - s x_0, x_0 = a x - s v, eps = a v + s x.
        abar is rounded to the dtype of x first. diffusers does the same, so that DDIM is equal bit by bit.

        Args:
            x: Noisy images, shape (B, ...).
            output: Network output, same shape.
            t_B: Times in (0, 1].

        Returns:
            (x_0, eps), as x.
        """
        abar = self.abar(t_B, x)
        alpha, sigma = abar**0.5, (1.0 - abar) ** 0.5
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        return alpha * x - sigma * output, alpha * output + sigma * x

    def x0(self, x: Tensor, output: Tensor, t_B: Tensor) -> Tensor:
        """Return the image of :meth:`x0_eps`."""
        return self.x0_eps(x, output, t_B)[0]

    def result_dtype(self, x: Tensor, output: Tensor) -> torch.dtype:
        """Return the wider of both dtypes, as ``DDIMScheduler`` does."""
        return torch.promote_types(x.dtype, output.dtype)

    def interpolate(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """Add noise: x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps.

        abar is rounded to the dtype of x_0 first, as in diffusers.
        """
        abar = self.abar(t_B, x0)
        return abar**0.5 * x0 + (1.0 - abar) ** 0.5 * eps

    def abar(self, t_B: Tensor, like: Tensor) -> Tensor:
        """Return abar_t, shaped to broadcast over ``like``, on its device and in its dtype."""
        return rows(torch.exp(self.log_alphas_cumprod(t_B)).to(like.device, like.dtype), like)

    def _position(self, t_B: Tensor) -> Tensor:
        # (k + 1) / 1000 is not exact in fp32. Snapping returns the integer timestep that was meant, which stock
        # schedulers need to be matched exactly (fp32 of T t is at most 6e-5 off for T = 1000).
        position_B = wide(t_B) * (self.log_abar_K.numel() - 1)
        return torch.where((position_B - position_B.round()).abs() < 1e-4, position_B.round(), position_B)


def _fp32_like(value_B: Tensor, like_B: Tensor) -> Tensor:
    return value_B.to(like_B.device, torch.float32)


def vp_path(alphas_cumprod_K: Tensor, final: float = 1.0, prediction: str = "epsilon") -> VPPath:
    """Create the path of a scheduler's ``alphas_cumprod``.

    Args:
        alphas_cumprod_K: abar of timesteps 0 ... T - 1, strictly decreasing in (0, 1).
        final: abar at t = 0. 1.0 leaves no noise. Schedulers with ``set_alpha_to_one=False`` use
            ``alphas_cumprod_K[0]``.
        prediction: What the network predicts, one of ``PREDICTIONS``.

    Raises:
        ConfigError: The values do not decrease in (0, 1), ``final`` is out of range, or ``prediction`` is unknown.

    Example:
        >>> path = vp_path(torch.tensor([0.9, 0.5, 0.1]))
        >>> path.timestep(torch.tensor([1.0, 1 / 3]))
        tensor([2., 0.])
        >>> path.sigma(torch.tensor([2 / 3]))
        tensor([1.])
    """
    abar_K = wide(alphas_cumprod_K.detach())
    if abar_K.numel() < 2 or not bool(((abar_K > 0) & (abar_K < 1)).all() and (abar_K.diff() < 0).all()):
        raise ConfigError(
            "alphas_cumprod do not strictly decrease within (0, 1). The last value must be above 0. Use a scheduler "
            "without zero-terminal-SNR rescaling."
        )
    if not float(abar_K[0]) <= final <= 1.0:
        raise ConfigError(
            f"final is {final}. It must be between alphas_cumprod[0] = {float(abar_K[0])} and 1. Use 1.0 to leave no "
            "noise."
        )
    return VPPath(torch.cat([abar_K.new_tensor([final]), abar_K]).log(), prediction)
