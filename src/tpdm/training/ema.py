"""A running average of the policy's weights: single updates are loud, their average is what gets used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tpdm.policies.tpm import TimePredictionModule


class EMA:
    """Exponential moving average of the weights after every update (Polyak and Juditsky 1992, with forgetting).

    Rollouts go on with the policy itself, so that the ratio stays 1 before the first step; validation and the
    artifacts wear the average. The first updates forget faster, (1 + n) / (10 + n), or the untrained weights would
    stay in it for long.

    Args:
        policy: whose weights it starts from.
        decay: share that stays at each update, in [0, 1); 0 follows the policy exactly.
    """

    def __init__(self, policy: TimePredictionModule, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in policy.state_dict().items()}

    @torch.no_grad()
    def update(self, policy: TimePredictionModule, updates: int) -> None:
        """Takes in the weights after so many updates (1 or more)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, value in policy.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)

    @contextmanager
    def average_parameters(self, policy: TimePredictionModule) -> Iterator[None]:
        """The policy has the averaged weights inside the block, and its own again after it."""
        own = {k: v.detach().clone() for k, v in policy.state_dict().items()}
        policy.load_state_dict(self.weights)
        try:
            yield
        finally:
            policy.load_state_dict(own)
