"""Solvers on the variance-preserving path, with the interface of ``tpdm.core.solvers``.

The network's output, eps or v by ``prediction``, stands where the velocity stood. The result has the wider dtype of x
and output, as in diffusers: under autocast outputs are halves, and latents stay fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from tpdm.core.multistep import MultistepState, advance, dpmpp_2m_update, initial_state, moving
from tpdm.core.paths import rows
from tpdm.core.solvers import Solver
from tpdm.core.vp_path import VPPath

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
