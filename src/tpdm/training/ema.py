"""The exponential moving average of the policy's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tpdm.policies.tpm import TimePredictionModule


class EMA:
    """Exponential moving average of the weights after every update.

    Single updates are noisy, so that validation and the artifacts use the average. Rollouts use the policy itself, so
    that the ratio is 1 before the first step. The decay of update n is at most (1 + n) / (10 + n). Otherwise the
    untrained weights would stay in the average for long.

    Args:
        policy: The average starts from its weights.
        decay: Share of the average that an update keeps, in [0, 1). With 0 the average equals the policy.

    Example:
        >>> from tpdm.policies.tpm_config import TPMConfig
        >>> policy = TimePredictionModule(TPMConfig(feature_channels=4, temb_channels=2, channels=8, grid=2))
        >>> ema = EMA(policy, decay=0.9)
        >>> ema.update(policy, updates=1)
        >>> with ema.average_parameters(policy):
        ...     averaged = policy.fc2.bias.detach().clone()
        >>> torch.equal(averaged, policy.fc2.bias)
        True
    """

    def __init__(self, policy: TimePredictionModule, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in policy.state_dict().items()}

    @torch.no_grad()
    def update(self, policy: TimePredictionModule, updates: int) -> None:
        """Adds the weights of the policy to the average.

        Args:
            policy: The policy after the update.
            updates: Number of updates done, >= 1.
        """
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, value in policy.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)

    @contextmanager
    def average_parameters(self, policy: TimePredictionModule) -> Iterator[None]:
        """Gives the policy the averaged weights inside the block, and its own weights after it."""
        trained = {k: v.detach().clone() for k, v in policy.state_dict().items()}
        policy.load_state_dict(self.weights)
        try:
            yield
        finally:
            policy.load_state_dict(trained)
