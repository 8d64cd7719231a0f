"""Several rewards as one: each standardized on a calibration batch, then added with weights."""

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
        key: its name in the recipe, under which it is logged.
        reward: scores images.
        weight: of its standardized score; below 0 it is a price.
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
    """Scores and what they are made of.

    Attributes:
        score_B: fp32 on the CPU.
        parts: raw scores (B,) of each part of a composite; empty for any other reward.
    """

    score_B: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class CompositeReward:
    """``sum of weight_i * (score_i - mean_i) / sd_i``: about 0 on average before training.

    Attributes:
        parts: at least one, keys different.
        standards: by key; None until ``calibrated``.
    """

    parts: tuple[RewardPart, ...]
    standards: Mapping[str, Standard] | None = None

    @property
    def name(self) -> str:
        """The parts with their weights."""
        return " + ".join(f"{part.weight:g} x {part.key}" for part in self.parts)

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of RGB images (B, 3, H, W) in [0, 1]."""
        return self.combine(self.score_parts(images_B3HW, prompts))

    def score_parts(
        self, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Raw scores (B,) by key, each checked, so that a failure names the part.

        Raises:
            RewardError: a part fails, or returns no scores.
        """
        return {part.key: checked_scores(part.reward, images_B3HW, prompts, seeds) for part in self.parts}

    def over_long(self, prompts: Sequence[str]) -> list[Truncation]:
        """What its parts say of themselves."""
        readers = [part.reward for part in self.parts if isinstance(part.reward, ReadsTokens)]
        return [said for reader in readers for said in reader.over_long(prompts)]

    def combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum (B,) of standardized scores.

        Raises:
            RewardError: not calibrated yet.
        """
        if self.standards is None:
            raise RewardError(
                f"got reward '{self.name}' without statistics, expected a mean and a standard deviation of each part; "
                "calibrate it on a batch of images first"
            )
        standardized = [
            part.weight * (parts[part.key] - self.standards[part.key].mean) / self.standards[part.key].sd
            for part in self.parts
        ]
        return torch.stack(standardized).sum(0)

    def calibrated(self, images_B3HW: Tensor, prompts: Sequence[str]) -> CompositeReward:
        """The same reward with the statistics of these images (two at least).

        Raises:
            RewardError: a part fails, or scores all of them alike.
        """
        standards = {}
        for key, score_B in self.score_parts(images_B3HW, prompts).items():
            score_B = wide(score_B)
            standards[key] = Standard(float(score_B.mean()), float(score_B.std(correction=0)))
            if not standards[key].sd > 0:
                raise RewardError(
                    f"got the score {standards[key].mean:g} from part '{key}' of the reward for all {len(prompts)} "
                    "calibration images, expected different ones; try it on two unlike images, or leave it out"
                )
        return replace(self, standards=standards)


def compute_rewards(
    reward: Reward, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
) -> RewardOutput:
    """``checked_scores``, with the parts where the reward has any."""
    if not isinstance(reward, CompositeReward):
        return RewardOutput(checked_scores(reward, images_B3HW, prompts, seeds), {})
    parts = reward.score_parts(images_B3HW, prompts, seeds)
    return RewardOutput(reward.combine(parts), parts)


def save_standards(reward: CompositeReward, folder: Path) -> None:
    """Writes the statistics to ``folder/reward-statistics.json``, atomically; floats come back bit for bit."""
    assert reward.standards is not None
    write_json(folder / STANDARDS, {key: asdict(standard) for key, standard in reward.standards.items()})


def run_reward(reward: Reward, folder: Path) -> Reward:
    """The reward that a run was begun with: a composite gets the statistics in ``folder/reward-statistics.json``.

    Raises:
        RewardError: that file is missing, damaged or of other parts.
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
