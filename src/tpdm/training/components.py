"""What a run is made of, and how images and prices come of it; nothing here knows a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpdm.config.recipe import RewardConfig
from tpdm.data.prompts import Prompt
from tpdm.policies.tpm import TimePredictionModule
from tpdm.rewards.base import Reward
from tpdm.sampling.base import Sampler
from tpdm.training.monitoring.trackers import TrackerCallback
from tpdm.training.objective import additive_reward, discounted_reward

SavePretrained = Callable[[str, TimePredictionModule, dict[str, Any]], None]


@dataclass(frozen=True)
class TrainingComponents:
    """What a run is made of.

    Attributes:
        policy: trained in place.
        sampler: makes images with that policy.
        reward: scores them.
        train_prompts, validation_prompts: disjoint.
        save: ``save(name, policy, facts)`` writes the artifact ``name`` ("best" or "last") of the run.
        judges: rewards by name that score validations beside the reward, and teach nothing.
        listeners: are told of the run, where this process leads.
    """

    policy: TimePredictionModule
    sampler: Sampler
    reward: Reward
    train_prompts: Sequence[Prompt]
    validation_prompts: Sequence[Prompt]
    save: SavePretrained
    judges: Mapping[str, Reward] = field(default_factory=dict)
    listeners: Sequence[TrackerCallback] = ()

    @property
    def with_negatives(self) -> bool:
        """Whether any prompt of the run has a negative prompt (see ``SampleRequest.of``)."""
        return any(p.negative is not None for p in (*self.train_prompts, *self.validation_prompts))


def apply_step_penalty(
    score_B: Tensor, steps_B: Tensor, config: RewardConfig, gammas_B: Sequence[float] | None = None
) -> Tensor:
    """The objective of each image: its score with the price of its steps, in the recipe's form.

    ``gammas_B`` are the discounts of a dial, one for each image; None takes the recipe's.
    """
    if config.form == "additive":
        return additive_reward(score_B, steps_B, config.step_cost)
    gamma = config.gamma if gammas_B is None else torch.tensor(gammas_B, dtype=torch.float64, device="cpu")
    return discounted_reward(score_B, steps_B, gamma, config.offset)
