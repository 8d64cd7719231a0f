"""A Gaussian mixture whose flow velocity is known exactly: the network of tests about solvers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdm.core.solvers import Solver


@dataclass(frozen=True)
class Mixture:
    """x_0 ~ sum_k w_k N(mu_k, s_k^2 I), x_t = (1 - t) x_0 + t eps.

    Sums over components and dimensions are spelt out element by element, so that a row's result cannot
    depend on the rows beside it.
    """

    weights: Sequence[float] = (0.5, 0.3, 0.2)
    means: Sequence[Sequence[float]] = ((1.5, 0.5), (-1.0, 1.0), (0.0, -1.5))
    scales: Sequence[float] = (0.5, 0.4, 0.6)

    def velocity(self, x_BD: Tensor, t_B: Tensor) -> Tensor:
        """v(x, t) = E[eps - x_0 | x_t = x], in the dtype of x; (B, D) and (B,), t in [0, 1]."""
        t_B = t_B.to(x_BD.dtype)
        logits, centered, variances = [], [], []
        for weight, mean, scale in zip(self.weights, self.means, self.scales, strict=True):
            variance_B = ((1 - t_B) * scale) ** 2 + t_B**2
            rest_BD = x_BD - (1 - t_B)[:, None] * torch.tensor(mean, dtype=x_BD.dtype)
            square_B = sum((d**2 for d in rest_BD.unbind(1)), torch.zeros_like(t_B))
            logits.append(math.log(weight) - 0.5 * square_B / variance_B - 0.5 * x_BD.shape[1] * torch.log(variance_B))
            centered.append(rest_BD)
            variances.append(variance_B)
        top_B = torch.stack(logits).max(0).values
        parts = [torch.exp(logit_B - top_B) for logit_B in logits]
        total_B = sum(parts[1:], parts[0])
        v_BD = torch.zeros_like(x_BD)
        for part_B, rest_BD, variance_B, mean, scale in zip(
            parts, centered, variances, self.means, self.scales, strict=True
        ):
            # Given the component, x_0, eps and x_t are jointly normal, so the expectation is linear in x_t.
            gain_B = (t_B - (1 - t_B) * scale**2) / variance_B
            mean_D = torch.tensor(mean, dtype=x_BD.dtype)
            v_BD = v_BD + (part_B / total_B)[:, None] * (gain_B[:, None] * rest_BD - mean_D)
        return v_BD


def integrate(solver: Solver, mixture: Mixture, x_BD: Tensor, schedules: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Runs every image through its own times (down to 0) in one batch; returns x at 0 and the evaluations.

    An image that has reached its end stays in the batch with t_next = t.
    """
    state, longest = solver.init(x_BD), max(len(times) for times in schedules)
    padded_BN = torch.stack([torch.cat([t, t.new_zeros(longest - len(t))]) for t in schedules])
    for n in range(longest - 1):
        t_B, t_next_B = padded_BN[:, n], padded_BN[:, n + 1]
        x_BD, state = solver.step(x_BD, mixture.velocity(x_BD, t_B), t_B, t_next_B, state)
    return x_BD, longest - 1
