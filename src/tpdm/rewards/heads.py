"""The small network that ImageReward and the LAION aesthetic predictor put on an embedding."""

from __future__ import annotations

from torch import nn


def make_head(width: int) -> nn.Sequential:
    """(B, width) -> (B, 1). Published with dropout between the linear layers and no non-linearity.

    The places where dropout was keep their numbers, which are part of the published names (0, 2, 4, 6, 7).
    """
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Identity(),
        nn.Linear(1024, 128),
        nn.Identity(),
        nn.Linear(128, 64),
        nn.Identity(),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
