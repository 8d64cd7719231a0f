"""Solvers on the flow path: one step, explicit state, one network evaluation per call, one time per image.

Every solver has ``init(x) -> state`` and ``step(x, v, t_B, t_next_B, state, active_B) -> (x_next, state)``;
loops live elsewhere. x and v are (B, ...); times are in [0, 1] and fall. Images that are inactive, or whose
t_next is not below t, keep x and state. Work happens in fp32 (fp64 if x is); the result has v's dtype, as in
diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from tpdm.core.multistep import MultistepState, ab2_update, advance, dpmpp_2m_update, initial_state, moving
from tpdm.core.paths import VPPath, flow_alpha_sigma, flow_x0, rows


class Solver(Protocol):
    """A numerical method; implementations hold options, never state."""

    def init(self, x: Tensor) -> MultistepState:
        """State of images that have made no step."""

    def step(
        self,
        x: Tensor,
        v: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: MultistepState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, MultistepState]:
        """From t to t_next with the network's output at (x, t)."""


def euler(x: Tensor, v: Tensor, t_B: Tensor, t_next_B: Tensor) -> Tensor:
    """x_next = x + (t_next - t) v, the paper's step.

    The difference is rounded to v's dtype before it multiplies, because diffusers' scheduler does so (a 0-dim
    fp32 tensor yields to v); fp32 would be more exact in half precision, but differ from the stock pipeline.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    return (x.to(work) + rows((t_next_B - t_B).to(v.dtype), x) * v).to(v.dtype)


@dataclass(frozen=True)
class Euler:
    """Order 1: ``euler`` per image. Bit-exact with FlowMatchEulerDiscreteScheduler at equal times."""

    def init(self, x: Tensor) -> MultistepState:
        """No history; Euler keeps none."""
        return initial_state(x)

    def step(
        self,
        x: Tensor,
        v: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: MultistepState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, MultistepState]:
        """x + (t_next - t) v."""
        here = rows(moving(t_B, t_next_B, active_B), x)
        return torch.where(here, euler(x, v, t_B, t_next_B), x.to(v.dtype)), state


@dataclass(frozen=True)
class Dpmpp2M:
    """Order 2 in ln((1 - t) / t): ``dpmpp_2m_update`` on the flow path; order 1 on first and last step."""

    def init(self, x: Tensor) -> MultistepState:
        """No history."""
        return initial_state(x)

    def step(
        self,
        x: Tensor,
        v: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: MultistepState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, MultistepState]:
        """Exact where x_0 is constant along the path."""
        wide = x.to(state.previous.dtype)
        x0 = flow_x0(wide, v.to(wide.dtype), t_B)
        x_next = dpmpp_2m_update(wide, x0, t_B, t_next_B, state, flow_alpha_sigma)
        return advance(x, x_next.to(v.dtype), x0, t_B, state, moving(t_B, t_next_B, active_B))


@dataclass(frozen=True)
class AB2:
    """Order 2 in t: ``ab2_update``. A step much longer than the one before extrapolates far."""

    def init(self, x: Tensor) -> MultistepState:
        """No history."""
        return initial_state(x)

    def step(
        self,
        x: Tensor,
        v: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: MultistepState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, MultistepState]:
        """Exact where v changes linearly in t."""
        wide, v_wide = x.to(state.previous.dtype), v.to(state.previous.dtype)
        x_next = ab2_update(wide, v_wide, t_B, t_next_B, state)
        return advance(x, x_next.to(v.dtype), v_wide, t_B, state, moving(t_B, t_next_B, active_B))


SOLVERS: Mapping[str, Solver] = MappingProxyType({"euler": Euler(), "dpmpp_2m": Dpmpp2M(), "ab2": AB2()})

"""The solvers of the flow path by name."""

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DDIM:
    """Order 1, deterministic (arXiv 2010.02502, eq. 12). In fp32 bit-exact with DDIMScheduler.

    Attributes:
        path: alphas_cumprod in continuous time.
        prediction: "epsilon" or "v_prediction".
    """

    path: VPPath
    prediction: str = "epsilon"

    def init(self, x: Tensor) -> MultistepState:
        """No history; DDIM keeps none."""
        return initial_state(x)

    def step(
        self,
        x: Tensor,
        v: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: MultistepState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, MultistepState]:
        """x_next = a' x_0 + s' eps."""
        wide = x.to(state.previous.dtype)
        x0, eps = self.path.x0_eps(wide, v.to(wide.dtype), t_B, self.prediction)
        abar = self.path.abar(t_next_B, wide)
        x_next = abar**0.5 * x0 + (1.0 - abar) ** 0.5 * eps
        here = rows(moving(t_B, t_next_B, active_B), x)
        dtype = torch.promote_types(x.dtype, v.dtype)
        return torch.where(here, x_next.to(dtype), x.to(dtype)), state


@dataclass(frozen=True)
class VPDpmpp2M:
    """Order 2 in ln(alpha / sigma): ``dpmpp_2m_update`` on a VP path; attributes as ``DDIM``."""

    path: VPPath
    prediction: str = "epsilon"

    def init(self, x: Tensor) -> MultistepState:
        """No history."""
        return initial_state(x)

    def step(
        self,
        x: Tensor,
        v: Tensor,
        t_B: Tensor,
        t_next_B: Tensor,
        state: MultistepState,
        active_B: Tensor | None = None,
    ) -> tuple[Tensor, MultistepState]:
        """Exact where x_0 is constant along the path."""
        wide = x.to(state.previous.dtype)
        x0, _ = self.path.x0_eps(wide, v.to(wide.dtype), t_B, self.prediction)
        x_next = dpmpp_2m_update(wide, x0, t_B, t_next_B, state, self.path.alpha_sigma)
        x_next = x_next.to(torch.promote_types(x.dtype, v.dtype))
        return advance(x, x_next, x0, t_B, state, moving(t_B, t_next_B, active_B))


VP_SOLVERS: Mapping[str, Callable[[VPPath, str], Solver]] = MappingProxyType({"euler": DDIM, "dpmpp_2m": VPDpmpp2M})

"""The solvers of the variance-preserving path, (path, prediction) -> solver, named as their kin on the flow path.

DDIM is Euler's method: with y = x / sqrt(abar) and sigma = sqrt((1 - abar) / abar) its step is
y' = y + (sigma' - sigma) eps.
"""
