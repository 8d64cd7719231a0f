"""Weighted sums of rewards, each standardized on a calibration batch."""

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
        key: Name in the recipe and in logs.
        reward: The reward.
        weight: Weight of the standardized score. A negative weight is a penalty.
    """

    key: str
    reward: Reward
    weight: float


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation (> 0) of a part's scores on the calibration batch, in the part's unit."""

    mean: float
    sd: float


@dataclass(frozen=True)
class RewardOutput:
    """Scores, and the raw scores of a composite's parts.

    Attributes:
        score_B: Scores in fp32 on the CPU.
        parts: Raw scores (B,) by key. Empty if the reward is no composite.
    """

    score_B: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class CompositeReward:
    """``sum of weight_i * (score_i - mean_i) / sd_i``: about 0 on average before training.

    Attributes:
        parts: At least one part. Keys must be different.
        standards: Statistics by key. None before ``calibrated``.

    Example:
        >>> from tpdm.rewards.custom import FunctionReward
        >>> red = FunctionReward("red", lambda images, prompts: images[:, 0].mean((1, 2)))
        >>> images = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 3, 8, 8)
        >>> reward = CompositeReward((RewardPart("red", red, 2.0),)).calibrated(images, ["a", "b", "c"])
        >>> reward.name, [round(score, 2) for score in reward.score(images, ["a", "b", "c"]).tolist()]
        ('2 x red', [-2.45, 0.0, 2.45])
    """

    parts: tuple[RewardPart, ...]
    standards: Mapping[str, Standard] | None = None

    @property
    def name(self) -> str:
        """The parts with their weights."""
        return " + ".join(f"{part.weight:g} x {part.key}" for part in self.parts)

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of RGB images (B, 3, H, W) in [0, 1]."""
        return self.combine(self.score_parts(images_B3HW, prompts))

    def score_parts(
        self, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Return checked raw scores (B,) by key. A failure names the part.

        Raises:
            RewardError: If a part fails or returns no scores.
        """
        return {part.key: checked_scores(part.reward, images_B3HW, prompts, seeds) for part in self.parts}

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """Return the entries of all parts that truncate prompts."""
        readers = [part.reward for part in self.parts if isinstance(part.reward, ReadsTokens)]
        return [entry for reader in readers for entry in reader.count_truncated(prompts)]

    def combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum (B,) of standardized scores.

        Raises:
            RewardError: If the reward is not calibrated.
        """
        if self.standards is None:
            raise RewardError(
                f"Reward '{self.name}' is used without statistics. It needs a mean and a standard deviation of each "
                "part. First calibrate it on a batch of images."
            )
        standardized = [
            part.weight * (parts[part.key] - self.standards[part.key].mean) / self.standards[part.key].sd
            for part in self.parts
        ]
        return torch.stack(standardized).sum(0)

    def calibrated(self, images_B3HW: Tensor, prompts: Sequence[str]) -> CompositeReward:
        """Return the same reward with the statistics of these images (at least two).

        Raises:
            RewardError: If a part fails, or gives all images the same score.
        """
        standards = {}
        for key, score_B in self.score_parts(images_B3HW, prompts).items():
            score_B = wide(score_B)
            standards[key] = Standard(float(score_B.mean()), float(score_B.std(correction=0)))
            if not standards[key].sd > 0:
                raise RewardError(
                    f"Part '{key}' of the reward gives {standards[key].mean:g} to all {len(prompts)} calibration "
                    "images. Scores must differ. Try the part on two different images, or remove it."
                )
        return replace(self, standards=standards)


def compute_rewards(
    reward: Reward, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
) -> RewardOutput:
    """Return ``checked_scores``, and the raw scores of the parts of a composite."""
    if not isinstance(reward, CompositeReward):
        return RewardOutput(checked_scores(reward, images_B3HW, prompts, seeds), {})
    parts = reward.score_parts(images_B3HW, prompts, seeds)
    return RewardOutput(reward.combine(parts), parts)


def save_standards(reward: CompositeReward, folder: Path) -> None:
    """Write the statistics to ``folder/reward-statistics.json`` atomically and without rounding."""
    assert reward.standards is not None
    write_json(folder / STANDARDS, {key: asdict(standard) for key, standard in reward.standards.items()})


def run_reward(reward: Reward, folder: Path) -> Reward:
    """Return the reward of a run: a composite gets the statistics in ``folder/reward-statistics.json``.

    Raises:
        RewardError: If that file is missing or damaged, or has statistics of other parts.
    """
    if not isinstance(reward, CompositeReward):
        return reward
    path = folder / STANDARDS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        standards = {key: Standard(float(value["mean"]), float(value["sd"])) for key, value in content.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RewardError(
            f"got {path}, which cannot be read ({type(error).__name__}), expected the statistics of reward "
            f"'{reward.name}' that the run was made with; put the file back, or train again in another output"
        ) from error
    keys = {part.key for part in reward.parts}
    if set(standards) != keys or not all(s.sd > 0 and abs(s.mean) < float("inf") for s in standards.values()):
        raise RewardError(
            f"got {path} with statistics of {sorted(standards)}, expected those of {sorted(keys)}; train again in "
            "another output"
        )
    return replace(reward, standards=standards)
