"""Classical error control as a policy. Two evaluations estimate the local error, which sets the length of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError
from tpdm.core.types import Decision, Features, Observation, Policy

LONGEST, SHORTEST = 0.5, 0.01  # limits of a step, in t
FIRST = 0.05  # first step, before the change is known


class ErrorControlled(Policy):
    """Chooses the step at which the local error of Euler's method equals a tolerance.

    The error of an Euler step of length h is h^2 / 2 |dv/dt|. The change of the velocity between the last two
    evaluations estimates |dv/dt| without further evaluations. So h = sqrt(2 tolerance / |dv/dt|). An embedded pair of
    first and second order would choose the same step (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations
    I, II.4). This policy rejects no steps.

    Args:
        tolerance: Root mean square error allowed per step, in the unit of the latents, > 0.

    Raises:
        ConfigError: The tolerance is not above 0.

    Example:
        >>> policy, row_B = ErrorControlled(tolerance=0.01), torch.zeros(1, dtype=torch.int64)
        >>> observation = policy.observe(None, torch.ones(1), row_B, row_B, torch.tensor([0.5]))
        >>> policy.propose(observation, None).t_next_B
        tensor([0.8000])
    """

    reads_change = True

    def __init__(self, tolerance: float) -> None:
        if not 0 < tolerance < float("inf"):
            raise ConfigError(f"tolerance is {tolerance:g}. It must be a number above 0. Try tolerance=0.002.")
        self.tolerance = tolerance

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        """Keep the times, and the speed at which the velocity changes. See :meth:`tpdm.core.types.Policy.observe`."""
        return Observation(None, None, t_B.float(), index_B, row_B, change_B=change_B)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """Return t - h, at least 0, with log-probability 0."""
        t_B = observation.t_B
        if observation.change_B is None:
            h_B = torch.full_like(t_B, FIRST)
        else:
            h_B = (2 * self.tolerance / observation.change_B.clamp_min(1e-12)).sqrt()
        t_next_B = (t_B - h_B.clamp(SHORTEST, LONGEST)).clamp_min(0.0)
        return Decision(t_next_B, t_next_B / t_B, torch.zeros_like(t_B))
