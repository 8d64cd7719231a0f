"""The seam between training and whatever judges images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tpdm.types import RewardError


class Reward(Protocol):
    """Scores images against their prompts."""

    @property
    def name(self) -> str:
        """Shown in logs, reports and artefacts."""

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in fp32, higher is better, of RGB images (B, 3, H, W) in [0, 1]."""


def checked_scores(reward: Reward, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
    """``reward.score`` with its promise enforced.

    Raises:
        RewardError: the reward failed, or returned the wrong number of scores, NaN or infinity. The message names
            the reward and the prompt; nothing is silently replaced.
    """
    try:
        scores = reward.score(images_B3HW, prompts)
    except RewardError:
        raise
    except Exception as e:
        raise RewardError(f"reward '{reward.name}' failed on prompt '{prompts[0]}' (first of its batch): {e}") from e
    if scores.shape != (len(prompts),):
        raise RewardError(
            f"reward '{reward.name}' returned shape {tuple(scores.shape)} for {len(prompts)} images; "
            f"it must return one score per image"
        )
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise RewardError(
            f"reward '{reward.name}' returned {scores[row].item()} for prompt '{prompts[row]}'; "
            f"check the reward on that prompt alone before training on it"
        )
    return scores.float()
