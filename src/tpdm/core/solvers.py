"""Solvers: one step from t to t_next per network evaluation, with explicit state and one time per image.

A solver has ``init(x) -> state`` and ``step(x, output, t_B, t_next_B, state, active_B) -> (x_next, state)``. Loops are
elsewhere. Arithmetic is fp32 (float64 if x is). The result has the dtype that the stock scheduler of diffusers gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from tpdm.core.device import wide
from tpdm.core.paths import FlowPath, Path, VPPath, rows


@dataclass(frozen=True)
class SolverState:
    """What a solver of second order remembers of each image's last step.

    Attributes:
        previous: Last x_0 estimate (DPM++ 2M) or last velocity (AB2), shape (B, ...), fp32 or wider.
        t_previous_B: Time of that estimate, shape (B,).
        has_history_B: Whether the image has made a step, bool (B,).
    """

    previous: Tensor
    t_previous_B: Tensor
    has_history_B: Tensor


class Solver(Protocol):
    """A numerical method. A solver has options and no state.

    Images that are inactive, or whose t_next is not below t, keep x and state.

    Example:
        >>> x, solver = torch.ones(1, 2), SOLVERS["euler"]
        >>> x_next, state = solver.step(x, 2 * x, torch.tensor([1.0]), torch.tensor([0.75]), solver.init(x))
        >>> x_next
        tensor([[0.5000, 0.5000]])
    """

    def init(self, x: Tensor) -> SolverState:
        """Return the state of images that have made no step.

        Args:
            x: Latents, shape (B, ...).
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        return SolverState(
            previous=torch.zeros_like(x, dtype=dtype),
            t_previous_B=torch.ones(x.shape[0], dtype=dtype, device=x.device),
            has_history_B=torch.zeros(x.shape[0], dtype=torch.bool, device=x.device),
        )

    def step(
        self,
        x: Tensor,
        output: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: SolverState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Move images from t to t_next.

        Args:
            x: Latents at t, shape (B, ...).
            output: Network output at (x, t), same shape: the velocity on the flow path.
            t_B: Current times in [0, 1].
            t_next_B: Next times, at most ``t_B``.
            state: Result of ``init`` or of the step before.
            active_B: Images to move, bool (B,). None moves every image with t_next < t.

        Returns:
            (latents at t_next, next state).
        """
        ...


def euler(x: Tensor, v: Tensor, t_B: Tensor, t_next_B: Tensor) -> Tensor:
    """Compute x + (t_next - t) v, the paper's step.

    The difference is rounded to the dtype of v before the product, because diffusers' scheduler does so. fp32 would be
    more exact in half precision, but different from the stock pipeline.

    Args:
        x: Latents at t, shape (B, ...).
        v: Velocity at (x, t), same shape.
        t_B: Current times.
        t_next_B: Next times.

    Example:
        >>> euler(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([1.0]), torch.tensor([0.25]))
        tensor([[0.2500, 0.2500]])
    """
    work = torch.promote_types(x.dtype, torch.float32)
    return (x.to(work) + rows((t_next_B - t_B).to(v.dtype), x) * v).to(v.dtype)


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method, order 1. Bit-exact with ``FlowMatchEulerDiscreteScheduler`` at equal times."""

    def step(
        self,
        x: Tensor,
        output: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: SolverState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Move images by :func:`euler`. See :meth:`Solver.step`."""
        moves = rows(_moving(t_B, t_next_B, active_B), x)
        return torch.where(moves, euler(x, output, t_B, t_next_B), x.to(output.dtype)), state


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM, order 1, deterministic (arXiv 2010.02502, eq. 12). Bit-exact with ``DDIMScheduler`` in fp32.

    Attributes:
        path: The VP path, and what the network predicts on it.
    """

    path: VPPath

    def step(
        self,
        x: Tensor,
        output: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: SolverState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Move images to alpha' x_0 + sigma' eps. See :meth:`Solver.step`."""
        x_wide = x.to(state.previous.dtype)
        x0, eps = self.path.x0_eps(x_wide, output.to(x_wide.dtype), t_B)
        moves, dtype = rows(_moving(t_B, t_next_B, active_B), x), self.path.result_dtype(x, output)
        return torch.where(moves, self.path.interpolate(x0, eps, t_next_B).to(dtype), x.to(dtype)), state


@dataclass(frozen=True)
class Dpmpp2M(Solver):
    """DPM-Solver++ 2M, order 2 in l = ln(alpha / sigma) (arXiv 2211.01095, algorithm 2).

    With a = alpha, s = sigma and a prime for t_next:
    x_next = (s'/s) x + (a' - a s'/s) D,  D = x_0 + (x_0 - x_0_previous) (l' - l) / (2 (l - l_previous)).
    This form has no logarithm outside the ratio, so that it is finite at both ends. D is x_0 (order 1) on an image's
    first step and on the step to t = 0. After a step from t = 1, where l is -inf, the ratio is 0.
    The solver is exact where x_0 is constant along the path.

    Attributes:
        path: The path that the network was trained on. The default is the flow path.
    """

    path: Path = field(default_factory=FlowPath)

    def step(
        self,
        x: Tensor,
        output: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: SolverState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Move images by the formula of the class. See :meth:`Solver.step`."""
        x_wide = x.to(state.previous.dtype)
        x0 = self.path.x0(x_wide, output.to(x_wide.dtype), t_B)
        second_B = state.has_history_B & (t_next_B > 0)
        (alpha_B, sigma_B), (alpha_next_B, sigma_next_B) = self.path.alpha_sigma(t_B), self.path.alpha_sigma(t_next_B)
        alpha_prev_B, sigma_prev_B = self.path.alpha_sigma(state.t_previous_B)
        now_B = torch.log(alpha_B / sigma_B)
        ratio_B = (torch.log(alpha_next_B / sigma_next_B) - now_B) / (now_B - torch.log(alpha_prev_B / sigma_prev_B))
        target = x0 + rows(_coefficient(second_B, 0.5 * ratio_B, x_wide), x) * (x0 - state.previous)
        keep_B = sigma_next_B / sigma_B
        gain_B = alpha_next_B - alpha_B * keep_B
        keep, gain = (rows(value_B.to(x.device, x_wide.dtype), x) for value_B in (keep_B, gain_B))
        x_next = (keep * x_wide + gain * target).to(self.path.result_dtype(x, output))
        return _advance(x, x_next, x0, t_B, state, _moving(t_B, t_next_B, active_B))


@dataclass(frozen=True)
class AB2(Solver):
    """Adams-Bashforth of order 2 in t, on the flow path, with variable steps.

    It integrates the line through the last two velocities:
    x_next = x + (t_next - t) (v + (v - v_previous) (t_next - t) / (2 (t - t_previous))).
    The first step is Euler's. A step much longer than the one before extrapolates far.
    The solver is exact where v is linear in t.
    """

    def step(
        self,
        x: Tensor,
        output: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: SolverState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Move images by the formula of the class. See :meth:`Solver.step`."""
        x_wide, v = x.to(state.previous.dtype), output.to(state.previous.dtype)
        dt_B = wide(t_next_B) - wide(t_B)
        ratio_B = dt_B / (wide(t_B) - wide(state.t_previous_B))
        half = rows(_coefficient(state.has_history_B, 0.5 * ratio_B, x_wide), x)
        x_next = x_wide + rows(dt_B.to(x.device, x_wide.dtype), x) * (v + half * (v - state.previous))
        return _advance(x, x_next.to(output.dtype), v, t_B, state, _moving(t_B, t_next_B, active_B))


SOLVERS: Mapping[str, Solver] = MappingProxyType({"euler": Euler(), "dpmpp_2m": Dpmpp2M(), "ab2": AB2()})
"""Solvers of the flow path by name."""

VP_SOLVERS: Mapping[str, Callable[[VPPath], Solver]] = MappingProxyType({"euler": DDIM, "dpmpp_2m": Dpmpp2M})
"""Solvers of the VP path by name: path -> solver. Names are those of the flow path.

DDIM is Euler's method. With y = x / sqrt(abar) and sigma = sqrt((1 - abar) / abar), its step is
y' = y + (sigma' - sigma) eps.
"""


def _coefficient(known_B: Tensor, value_B: Tensor, x: Tensor) -> Tensor:
    """A coefficient on the device and in the dtype of x; 0 where it is unknown, even if the value is NaN."""
    value_B = value_B.to(x.device, x.dtype)
    return torch.where(known_B, value_B, torch.zeros_like(value_B))


def _advance(
    x: Tensor, x_next: Tensor, estimate: Tensor, t_B: Tensor, state: SolverState, moving_B: Tensor
) -> tuple[Tensor, SolverState]:
    """(x_next, state with the estimate and t) for moving images, (x, state) for others, in the dtype of x_next."""
    moves = rows(moving_B, x)
    return torch.where(moves, x_next, x.to(x_next.dtype)), SolverState(
        previous=torch.where(moves, estimate, state.previous),
        t_previous_B=torch.where(moving_B, t_B.to(state.t_previous_B.dtype), state.t_previous_B),
        has_history_B=state.has_history_B | moving_B,
    )


def _moving(t_B: Tensor, t_next_B: Tensor, active_B: Tensor | None) -> Tensor:
    """Whether an image is active and its next time is below its current one, bool (B,)."""
    return (t_next_B < t_B) if active_B is None else active_B & (t_next_B < t_B)
