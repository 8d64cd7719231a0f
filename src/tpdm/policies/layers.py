"""Parts of a TPM: the layout of features, tables over time, a norm adapted by the time, and plain fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tpdm.core.device import wide
from tpdm.core.errors import BackboneError

RATIO_RANGE = (0.05, 0.98)  # of an initial schedule, so that training can move it both ways
TIME_RIDGE = 1e-3  # ridge, by which knots without an observation get the mean
FRESH: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # of new weights, whatever torch's defaults are
OUTLIER_BOUND = 8.0  # features are clamped at this multiple of their token's mean magnitude


def fold_tokens(map_BDHW: Tensor) -> Tensor:
    """Fold a map into the published layout, which is not the true one.

    The raster list of tokens is read as (H/2, W/2, 2, 2) blocks, as if four consecutive tokens were a 2 x 2 block:
    token n = 4 (i W/2 + j) + 2 p + q goes to row 2i + p, column 2j + q.

    Args:
        map_BDHW: Map in its true layout, (B, D, H, W), with even H and W.

    Returns:
        (B, D, H, W), the same tokens in other places.

    Raises:
        BackboneError: A side is odd.

    Example:
        >>> fold_tokens(torch.arange(8).view(1, 1, 2, 4))[0, 0]
        tensor([[0, 1, 4, 5],
                [2, 3, 6, 7]])
    """
    B, D, H, W = map_BDHW.shape
    if H % 2 or W % 2:
        raise BackboneError(
            f"The image has {H} x {W} tokens. A TPM of the release layout needs even sides. Change the image size."
        )
    blocks = map_BDHW.reshape(B, D, H // 2, W // 2, 2, 2)
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(B, D, H, W)


def normalize(x: Tensor, dim: int = 1) -> Tensor:
    """Compute x / mean|x| over channels, clamped to +-8. Then one learning rate suits every backbone.

    The mean magnitude is used instead of LayerNorm's variance. Transformers have a few channels that are 1,000 times
    larger than the rest. They would dominate the variance (at D = 1536 the rest shrinks to .04), but not this mean (the
    rest keeps about .5).

    Args:
        x: Features of any shape.
        dim: Dimension of the channels.

    Example:
        >>> normalize(torch.tensor([[1.0, -3.0]]))
        tensor([[ 0.5000, -1.5000]])
    """
    x = x.float()
    return (x / x.abs().mean(dim, keepdim=True).clamp_min(1e-6)).clamp(-OUTLIER_BOUND, OUTLIER_BOUND)


def schedule_logit(t_B: Tensor, times: Sequence[float]) -> Tensor:
    """Compute logit(t_next / t) of a schedule, also at times between its own.

    t_next is interpolated. It is 0 below the last time above 0.

    Args:
        t_B: Times in (0, 1], fp32.
        times: Schedule that falls to 0.0.

    Returns:
        Logits, fp32 (B,), of ratios limited to ``RATIO_RANGE``.

    Example:
        >>> schedule_logit(torch.tensor([1.0]), [1.0, 0.5, 0.0])
        tensor([0.])
    """
    rising_T = t_B.new_tensor(list(times)).flip(0)
    here_T, there_T = rising_T[1:], rising_T[:-1]
    above_B = torch.searchsorted(here_T, t_B.contiguous()).clamp(1, max(1, len(here_T) - 1))
    if len(here_T) == 1:
        t_next_B = torch.zeros_like(t_B)
    else:
        low_B, high_B = here_T[above_B - 1], here_T[above_B]
        share_B = ((t_B - low_B) / (high_B - low_B)).clamp(0, 1)
        t_next_B = there_T[above_B - 1] + share_B * (there_T[above_B] - there_T[above_B - 1])
    return torch.logit((t_next_B / t_B).clamp(*RATIO_RANGE))


def initial_logit(
    t_B: Tensor, times: Sequence[float], init_times_low_gamma: Sequence[float] | None, position_B: Tensor | None
) -> Tensor:
    """Compute logit(t_next / t) of the schedule that the untrained TPM follows.

    Args:
        t_B: Times in (0, 1], fp32.
        times: Schedule at the high end of the gamma range.
        init_times_low_gamma: Schedule at the low end. None uses ``times`` everywhere.
        position_B: Positions in the gamma range, from -1 to +1. None if the TPM is not gamma-conditioned.
    """
    slow_B = schedule_logit(t_B, times)
    if init_times_low_gamma is None or position_B is None:
        return slow_B
    return torch.lerp(schedule_logit(t_B, init_times_low_gamma), slow_B, (position_B + 1) / 2)


def hat_basis(t_B: Tensor, knots: int) -> Tensor:
    """Evaluate the piecewise-linear basis on even knots of [0, 1].

    Args:
        t_B: Times in [0, 1].
        knots: Number of knots R.

    Returns:
        (B, R). Each row has at most two entries above 0, which sum to 1.

    Example:
        >>> hat_basis(torch.tensor([0.25]), 3)
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    position_B = t_B.clamp(0, 1) * (knots - 1)
    knot_R = torch.arange(knots, dtype=torch.int64, device=t_B.device)
    return (1 - (position_B[:, None] - knot_R).abs()).clamp_min(0)


def fit_over_time(values_BE: Tensor, t_B: Tensor, knots: int, floor: float) -> tuple[Tensor, Tensor]:
    """Fit values by a function of the time alone, and measure the rest.

    Args:
        values_BE: E values of B observations.
        t_B: Times of the observations.
        knots: Number of knots R of the table.
        floor: Lower limit of the spread, added in squares.

    Returns:
        (table (R, E) for :func:`hat_basis`, standard deviations (E,) of the rest), fp32 on the CPU. Knots without an
        observation get the mean.
    """
    values_BE, basis_BR = wide(values_BE), hat_basis(wide(t_B), knots)
    mean_E = values_BE.mean(0)
    gram_RR = basis_BR.T @ basis_BR + TIME_RIDGE * torch.eye(knots, dtype=torch.float64, device="cpu")
    table_RE = mean_E + torch.linalg.solve(gram_RR, basis_BR.T @ (values_BE - mean_E))
    rest_BE = values_BE - basis_BR @ table_RE
    return table_RE.float(), (rest_BE.var(0, correction=0) + floor**2).sqrt().float()


def _tf32_switches() -> list[tuple[Any, str, Any, Any]]:
    """(object, attribute, on, off) of the TF32 settings in use. torch has two ways that must not be mixed."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    modern = ("fp32_precision", "tf32", "ieee")  # torch >= 2.9
    convolution = (cudnn.conv, *modern) if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", True, False)
    try:
        _ = matmul.allow_tf32
    except RuntimeError:  # the user set matmul the modern way, so that the other one raises
        return [convolution, (matmul, *modern)]
    return [convolution, (matmul, "allow_tf32", True, False)]


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Use plain fp32 inside the block, without autocast and TF32.

    Then a decision has the same score in every batch.

    Args:
        device_type: Type of the device, such as "cuda".
    """
    switches = _tf32_switches() if device_type == "cuda" else []
    were_on = [(place, name, on, off) for place, name, on, off in switches if getattr(place, name) == on]
    try:
        for place, name, _, off in were_on:
            setattr(place, name, off)
        # The meta device, which plans use, has no autocast.
        has_autocast = torch.amp.is_autocast_available(device_type)
        with torch.autocast(device_type, enabled=False) if has_autocast else nullcontext():
            yield
    finally:
        for place, name, on, _ in were_on:
            setattr(place, name, on)


class TimeAdaptiveNorm(nn.Module):
    """Group norm with one group, then shift and scale from the time: norm(x) (1 + scale) + shift.

    The linear layer gives the shift in its first half and the scale in its second, as in the release.

    Args:
        channels: Channels C of the map.
        condition_channels: Width E of the condition.
        eps: Number added to the variance of the group.
    """

    def __init__(self, channels: int, condition_channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=eps, **FRESH)
        self.linear = nn.Linear(condition_channels, 2 * channels, **FRESH)

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        """Adapt a map (B, C, H, W) by a condition (B, E)."""
        shift_BC, scale_BC = self.linear(condition_BE).chunk(2, dim=-1)
        adapted_BCHW: Tensor = self.norm(x_BCHW) * (1 + scale_BC[..., None, None]) + shift_BC[..., None, None]
        return adapted_BCHW
