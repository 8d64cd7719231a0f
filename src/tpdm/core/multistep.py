"""Second-order steps from the memory of one step before: the state, and the two formulas.

Each image has its own times, its own history and its own end. Coefficients are computed in float64 on the CPU, and
applied on the device of x in its dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdm.core.device import wide
from tpdm.core.paths import rows


@dataclass(frozen=True)
class MultistepState:
    """What a solver remembers of each image's last step.

    Attributes:
        previous: last x_0 estimate (DPM++ 2M) or last v (AB2), (B, ...), fp32 or wider.
        t_previous_B: the time it was evaluated at.
        has_history_B: bool; False before an image's first step.
    """

    previous: Tensor
    t_previous_B: Tensor
    has_history_B: Tensor


def initial_state(x: Tensor) -> MultistepState:
    """No history, for x of shape (B, ...)."""
    work = torch.promote_types(x.dtype, torch.float32)
    return MultistepState(
        previous=torch.zeros_like(x, dtype=work),
        t_previous_B=torch.ones(x.shape[0], dtype=work, device=x.device),
        has_history_B=torch.zeros(x.shape[0], dtype=torch.bool, device=x.device),
    )


def dpmpp_2m_update(
    x: Tensor,
    x0: Tensor,
    t_B: Tensor,
    t_next_B: Tensor,
    state: MultistepState,
    alpha_sigma: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) on a path x = a x_0 + s eps, with l = ln(a / s).

    x_next = (s'/s) x + (a' - a s'/s) D,  D = x_0 + (x_0 - x_0_previous) (l' - l) / (2 (l - l_previous)),
    which has no logarithm outside the ratio and is finite at both ends. D = x_0 (order 1) on an image's first
    step and on the step to t = 0; after a step from t = 1, where l is -inf, the ratio is 0 by itself.

    Args:
        x: (B, ...), fp32 or wider.
        x0: the network's image estimate at (x, t), as x.
        t_B: time of each image, above t_next_B.
        t_next_B: time after the step.
        state: x_0 and time of the step before.
        alpha_sigma: (B,) times -> signal and noise scale, float64 on the CPU.
    """
    second_B = state.has_history_B & (t_next_B > 0)
    (alpha_B, sigma_B), (alpha_next_B, sigma_next_B) = alpha_sigma(t_B), alpha_sigma(t_next_B)
    alpha_prev_B, sigma_prev_B = alpha_sigma(state.t_previous_B)
    now_B = torch.log(alpha_B / sigma_B)
    ratio_B = (torch.log(alpha_next_B / sigma_next_B) - now_B) / (now_B - torch.log(alpha_prev_B / sigma_prev_B))
    half_B = _where_known(second_B, 0.5 * ratio_B, x)
    keep_B = sigma_next_B / sigma_B
    target = x0 + rows(half_B, x) * (x0 - state.previous)
    keep, gain = (rows(value_B.to(x.device, x.dtype), x) for value_B in (keep_B, alpha_next_B - alpha_B * keep_B))
    return keep * x + gain * target


def ab2_update(x: Tensor, v: Tensor, t_B: Tensor, t_next_B: Tensor, state: MultistepState) -> Tensor:
    """Adams-Bashforth of order 2 with variable steps: the line through the last two velocities, integrated.

    x_next = x + (t_next - t) (v + (v - v_previous) (t_next - t) / (2 (t - t_previous))).
    Euler on the first step.

    Args:
        x: (B, ...), fp32 or wider.
        v: velocity at (x, t), as x.
        t_B: time of each image, above t_next_B.
        t_next_B: time after the step; 0 needs no exception.
        state: v and time of the step before.
    """
    dt_B = wide(t_next_B) - wide(t_B)
    ratio_B = dt_B / (wide(t_B) - wide(state.t_previous_B))
    half_B = _where_known(state.has_history_B, 0.5 * ratio_B, x)
    return x + rows(dt_B.to(x.device, x.dtype), x) * (v + rows(half_B, x) * (v - state.previous))


def _where_known(known_B: Tensor, value_B: Tensor, x: Tensor) -> Tensor:
    """A coefficient as x is kept; 0 where it is not known, whatever stands there."""
    value_B = value_B.to(x.device, x.dtype)
    return torch.where(known_B, value_B, torch.zeros_like(value_B))


def advance(
    x: Tensor, x_next: Tensor, seen: Tensor, t_B: Tensor, state: MultistepState, active_B: Tensor
) -> tuple[Tensor, MultistepState]:
    """(x_next, state holding ``seen`` and t) where active, (x, state) elsewhere; x_next sets the dtype."""
    here = rows(active_B, x)
    return torch.where(here, x_next, x.to(x_next.dtype)), MultistepState(
        previous=torch.where(here, seen, state.previous),
        t_previous_B=torch.where(active_B, t_B.to(state.t_previous_B.dtype), state.t_previous_B),
        has_history_B=state.has_history_B | active_B,
    )


def moving(t_B: Tensor, t_next_B: Tensor, active_B: Tensor | None) -> Tensor:
    """Bool (B,): active and with time left to go."""
    return (t_next_B < t_B) if active_B is None else active_B & (t_next_B < t_B)
