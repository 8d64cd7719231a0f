"""Policies for tests that need one which looks at features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpdm.core.types import Decision, Features, Observation, Policy


class LookingPolicy(Policy):
    """Ratio in (0.3, 0.8) from the mean of the last map; keeps all features it has been shown.

    With seeds the ratio is uniform in (0.3, 0.8), from (seed, index) alone.
    """

    reads_features = True

    def __init__(self) -> None:
        self.seen: list[Features] = []

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        assert features is not None
        self.seen.append(features)
        pooled = features.last_BDHW.float().mean((2, 3), keepdim=True)
        return Observation(pooled, features.temb_BE.float(), t_B, index_B, row_B)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        assert observation.map_BCHW is not None
        u_B = torch.sigmoid(10 * observation.map_BCHW.flatten(1)[:, 0])
        if seeds is not None:
            pairs = zip(seeds, observation.index_B.tolist(), strict=True)
            draws = [torch.rand((), generator=torch.Generator().manual_seed(1000 * s + i)) for s, i in pairs]
            u_B = torch.stack(draws)
        ratio_B = 0.3 + 0.5 * u_B
        return Decision(ratio_B * observation.t_B, ratio_B, -ratio_B)
