"""Composite rewards: a weighted sum of rewards, each standardized on a calibration batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tpdm.core.device import wide
from tpdm.core.errors import RewardError
from tpdm.core.io import write_json
from tpdm.data.truncation import Truncation
from tpdm.rewards.base import ReadsTokens, Reward, checked_scores

STANDARDS = "reward-statistics.json"


@dataclass(frozen=True)
class RewardPart:
    """One reward of a composite.

    Attributes:
        key: Name of the part in the recipe and in the training log.
        reward: Reward that scores the images.
        weight: Weight of the standardized score. A negative weight is a penalty.
    """

    key: str
    reward: Reward
    weight: float


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation (> 0) of a part's scores on the calibration batch, in the unit of the part."""

    mean: float
    sd: float


@dataclass(frozen=True)
class RewardOutput:
    """Scores, and the raw scores of their parts.

    Attributes:
        score_B: Scores (B,) in fp32 on the CPU.
        parts: Raw scores (B,) of each part of a composite, by key. Empty for any other reward.
    """

    score_B: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class CompositeReward:
    """Weighted sum of standardized rewards: ``sum of weight_i * (score_i - mean_i) / sd_i``.

    Rewards have different units. The standardization makes their weights comparable. Before training, the score is
    about 0 on average.

    Attributes:
        parts: One or more parts with different keys.
        standards: Mean and standard deviation of each part, by key. None before ``calibrated``.

    Example:
        >>> import torch
        >>> from tpdm.rewards.custom import FunctionReward
        >>> red = FunctionReward("red", lambda images, prompts: images[:, 0].mean(dim=(1, 2)))
        >>> contrast = FunctionReward("contrast", lambda images, prompts: 100 * images.std(dim=(1, 2, 3)))
        >>> images, prompts = torch.rand(8, 3, 4, 4), ["a red ring"] * 8
        >>> parts = (RewardPart("red", red, 1.0), RewardPart("contrast", contrast, 0.5))
        >>> reward = CompositeReward(parts).calibrated(images, prompts)
        >>> reward.name
        '1 x red + 0.5 x contrast'
        >>> bool(reward.score(images, prompts).mean().abs() < 1e-4)
        True
    """

    parts: tuple[RewardPart, ...]
    standards: Mapping[str, Standard] | None = None

    @property
    def name(self) -> str:
        """Keys of the parts, with their weights."""
        return " + ".join(f"{part.weight:g} x {part.key}" for part in self.parts)

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch of images.

        Args:
            images_B3HW: RGB images (B, 3, H, W) in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Scores (B,) in fp32 on the CPU, in standard deviations.

        Raises:
            RewardError: If the composite is not calibrated, or if a part fails.
        """
        return self.combine(self.score_parts(images_B3HW, prompts))

    def score_parts(
        self, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Return the raw scores (B,) of each part, by key. Each is checked, so that an error names the part.

        Raises:
            RewardError: If a part fails or returns invalid scores.
        """
        return {part.key: checked_scores(part.reward, images_B3HW, prompts, seeds) for part in self.parts}

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """Return the entries of all parts that read tokens."""
        readers = [part.reward for part in self.parts if isinstance(part.reward, ReadsTokens)]
        return [truncation for reader in readers for truncation in reader.count_truncated(prompts)]

    def combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum (B,) of the parts' standardized scores.

        Raises:
            RewardError: If the composite is not calibrated.
        """
        if self.standards is None:
            raise RewardError(
                f"Reward '{self.name}' has no statistics. It needs a mean and a standard deviation of each part. "
                "Call calibrated() with a batch of images first."
            )
        standardized = [
            part.weight * (parts[part.key] - self.standards[part.key].mean) / self.standards[part.key].sd
            for part in self.parts
        ]
        return torch.stack(standardized).sum(0)

    def calibrated(self, images_B3HW: Tensor, prompts: Sequence[str]) -> CompositeReward:
        """Return the same reward with the statistics of these images.

        Args:
            images_B3HW: RGB images (B, 3, H, W) in [0, 1], B >= 2. Training uses 64 images of the untrained policy.
            prompts: B prompts, one per image.

        Raises:
            RewardError: If a part fails, or if it gives all images the same score.
        """
        standards = {}
        for key, score_B in self.score_parts(images_B3HW, prompts).items():
            score_B = wide(score_B)
            standards[key] = Standard(float(score_B.mean()), float(score_B.std(correction=0)))
            if not standards[key].sd > 0:
                raise RewardError(
                    f"Part '{key}' of the reward gives all {len(prompts)} calibration images the score "
                    f"{standards[key].mean:g}. Their scores must differ. Try the part on two different images, or "
                    "remove it."
                )
        return replace(self, standards=standards)


def compute_rewards(
    reward: Reward, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
) -> RewardOutput:
    """Score images, check the scores, and return the parts' scores with them.

    Args:
        reward: Any reward. A composite must be calibrated.
        images_B3HW: RGB images (B, 3, H, W) in [0, 1].
        prompts: B prompts, one per image.
        seeds: B seeds of the images, for the error message.

    Raises:
        RewardError: As ``checked_scores``.
    """
    if not isinstance(reward, CompositeReward):
        return RewardOutput(checked_scores(reward, images_B3HW, prompts, seeds), {})
    parts = reward.score_parts(images_B3HW, prompts, seeds)
    return RewardOutput(reward.combine(parts), parts)


def save_standards(reward: CompositeReward, folder: Path) -> None:
    """Write the statistics to ``folder/reward-statistics.json``. The write is atomic and every bit is kept."""
    assert reward.standards is not None
    write_json(folder / STANDARDS, {key: asdict(standard) for key, standard in reward.standards.items()})


def run_reward(reward: Reward, folder: Path) -> Reward:
    """Return the reward that the run started with.

    A composite gets the statistics in ``folder/reward-statistics.json``. Any other reward is returned unchanged.

    Args:
        reward: Reward of the recipe.
        folder: Output folder of the run.

    Raises:
        RewardError: If that file is missing or damaged, or belongs to other parts.
    """
    if not isinstance(reward, CompositeReward):
        return reward
    path = folder / STANDARDS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        standards = {key: Standard(float(value["mean"]), float(value["sd"])) for key, value in content.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RewardError(
            f"{path} cannot be read ({type(error).__name__}). It must contain the statistics of reward "
            f"'{reward.name}' with which the run started. Restore the file, or train again with another output."
        ) from error
    keys = {part.key for part in reward.parts}
    if set(standards) != keys or not all(s.sd > 0 and abs(s.mean) < float("inf") for s in standards.values()):
        raise RewardError(
            f"{path} contains statistics of {sorted(standards)}. The reward needs valid statistics of {sorted(keys)}. "
            "Train again with another output."
        )
    return replace(reward, standards=standards)
