"""What a TPM is built from: features on their 2-D layout, a norm that hears the time, fp32 whatever surrounds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tpdm.core.device import wide
from tpdm.core.errors import BackboneError

RATIO_RANGE = (0.05, 0.98)  # of a schedule that is started from: leaves room on both sides
TIME_RIDGE = 1e-3  # knots without an observation get the mean
FRESH: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # of its weights, whatever torch's defaults are
OUTLIER_BOUND = 8.0  # features are clamped at this multiple of their token's mean magnitude


def fold_tokens(map_BDHW: Tensor) -> Tensor:
    """Folds a true map into the published one, which is NOT the true layout (docs/explanation/method.md).

    The raster list of tokens is read as (H/2, W/2, 2, 2) blocks, as if four consecutive tokens were a 2 x 2
    block: token n = 4 (i W/2 + j) + 2 p + q goes to row 2i + p, column 2j + q.

    Args:
        map_BDHW: true layout, (B, D, H, W), H and W even.

    Returns:
        (B, D, H, W), the same tokens in other places.

    Raises:
        BackboneError: an odd side.
    """
    B, D, H, W = map_BDHW.shape
    if H % 2 or W % 2:
        raise BackboneError(f"got {H} x {W} tokens, expected even sides for the release layout; change the image size.")
    blocks = map_BDHW.reshape(B, D, H // 2, W // 2, 2, 2)
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(B, D, H, W)


def normalize(x: Tensor, dim: int = 1) -> Tensor:
    """x / mean|x| over channels, clamped to +-8: no parameters, and one learning rate suits every backbone.

    Decision: the mean magnitude rather than LayerNorm's variance, because transformers keep a few channels
    1,000 times larger than the rest; those would own the variance (at D = 1536 the rest shrinks to .04), but
    not this mean (the rest keeps about .5).
    """
    x = x.float()
    return (x / x.abs().mean(dim, keepdim=True).clamp_min(1e-6)).clamp(-OUTLIER_BOUND, OUTLIER_BOUND)


def schedule_logit(t_B: Tensor, times: Sequence[float]) -> Tensor:
    """logit(t_next / t) of a schedule, also at times between its own: t_next is interpolated, 0 below its last time.

    Args:
        t_B: in (0, 1], fp32.
        times: falling to 0.0.

    Returns:
        fp32 (B,), of ratios limited to ``RATIO_RANGE``.
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


def hat_basis(t_B: Tensor, knots: int) -> Tensor:
    """Piecewise-linear basis on even knots of [0, 1]: (B, knots), at most two entries a row, which sum to 1."""
    place_B = t_B.clamp(0, 1) * (knots - 1)
    knot_R = torch.arange(knots, dtype=torch.int64, device=t_B.device)
    return (1 - (place_B[:, None] - knot_R).abs()).clamp_min(0)


def fit_over_time(values_BE: Tensor, t_B: Tensor, knots: int, floor: float) -> tuple[Tensor, Tensor]:
    """What of some values follows from the time alone, and how far they depart from that.

    Args:
        values_BE: E values of B observations.
        t_B: their times.
        knots: R, of the table.
        floor: of the spread, added in squares.

    Returns:
        (table (R, E) for ``hat_basis``, standard deviations (E,) of the rest); knots without an observation get the
        mean. fp32 on the CPU.
    """
    values_BE, basis_BR = wide(values_BE), hat_basis(wide(t_B), knots)
    mean_E = values_BE.mean(0)
    gram_RR = basis_BR.T @ basis_BR + TIME_RIDGE * torch.eye(knots, dtype=torch.float64, device="cpu")
    table_RE = mean_E + torch.linalg.solve(gram_RR, basis_BR.T @ (values_BE - mean_E))
    rest_BE = values_BE - basis_BR @ table_RE
    return table_RE.float(), (rest_BE.var(0, correction=0) + floor**2).sqrt().float()


def _tf32_switches() -> list[tuple[Any, str, Any, Any]]:
    """(place, name, on, off) of the TF32 settings in use; torch has two ways that must not mix."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    modern = ("fp32_precision", "tf32", "ieee")  # torch >= 2.9
    convolution = (cudnn.conv, *modern) if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", True, False)
    try:
        _ = matmul.allow_tf32
    except RuntimeError:  # the user set products the modern way, so the other one only raises
        return [convolution, (matmul, *modern)]
    return [convolution, (matmul, "allow_tf32", True, False)]


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Plain fp32 inside (no autocast, no TF32): a decision is scored in any batch as it was sampled."""
    switches = _tf32_switches() if device_type == "cuda" else []
    were_on = [(place, name, on, off) for place, name, on, off in switches if getattr(place, name) == on]
    try:
        for place, name, _, off in were_on:
            setattr(place, name, off)
        # The meta device, on which plans count, has no autocast.
        has_autocast = torch.amp.is_autocast_available(device_type)
        with torch.autocast(device_type, enabled=False) if has_autocast else nullcontext():
            yield
    finally:
        for place, name, on, _ in were_on:
            setattr(place, name, on)


class TimeAdaptiveNorm(nn.Module):
    """Group norm with one group, then shift and scale from the time: norm(x) (1 + scale) + shift.

    The linear layer gives the shift in its first half and the scale in its second, as the release's does
    (docs/explanation/method.md).

    Args:
        channels: C of the map.
        condition_channels: E of the condition.
        eps: added to the variance of the group.
    """

    def __init__(self, channels: int, condition_channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=eps, **FRESH)
        self.linear = nn.Linear(condition_channels, 2 * channels, **FRESH)

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        """(B, C, H, W) and (B, E) to (B, C, H, W)."""
        shift_BC, scale_BC = self.linear(condition_BE).chunk(2, dim=-1)
        adapted_BCHW: Tensor = self.norm(x_BCHW) * (1 + scale_BC[..., None, None]) + shift_BC[..., None, None]
        return adapted_BCHW
