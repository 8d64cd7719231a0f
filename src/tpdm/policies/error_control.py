"""Classical error control as a policy: each step as long as the local error allows, estimated from two evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError
from tpdm.core.types import Decision, Features, Observation, Policy

LONGEST, SHORTEST = 0.5, 0.01  # of a step, in t
FIRST = 0.05  # step before anything is known of the change


class ErrorControlled(Policy):
    """Chooses the step at which the local error of Euler's method would be a tolerance.

    One Euler step of length h errs by h^2 / 2 |dv/dt|; the change of the velocity between the last two evaluations
    estimates |dv/dt| at no cost. So h = sqrt(2 tolerance / |dv/dt|): what an embedded pair of first and second order
    would choose (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.4), without its rejected steps.

    Args:
        tolerance: root mean square error allowed per step, in the unit of the latents, > 0.

    Raises:
        ConfigError: a tolerance that is not above 0.
    """

    reads_change = True

    def __init__(self, tolerance: float) -> None:
        if not 0 < tolerance < float("inf"):
            raise ConfigError(f"got tolerance {tolerance:g}, expected a number above 0; correct it.")
        self.tolerance = tolerance

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        """The clock, and how fast the velocity changes; nothing is known of that at first."""
        return Observation(None, None, t_B.float(), index_B, row_B, change_B=change_B)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """t - h, at least 0; the log-probability is 0."""
        t_B = observation.t_B
        if observation.change_B is None:
            h_B = torch.full_like(t_B, FIRST)
        else:
            h_B = (2 * self.tolerance / observation.change_B.clamp_min(1e-12)).sqrt()
        t_next_B = (t_B - h_B.clamp(SHORTEST, LONGEST)).clamp_min(0.0)
        return Decision(t_next_B, t_next_B / t_B, torch.zeros_like(t_B))
