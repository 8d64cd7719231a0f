"""What a run is made of, and how images and prices come of it; nothing here knows a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpdm.config.recipe import Recipe, RewardConfig
from tpdm.data.prompts import Prompt
from tpdm.policies.tpm import TimePredictionModule
from tpdm.rewards.base import Reward
from tpdm.sampling.base import SampleBatch, Sampler
from tpdm.training.batch_sampler import draw_gammas
from tpdm.training.monitoring.trackers import TrackerCallback
from tpdm.training.objective import additive_reward, discounted_reward
from tpdm.training.rollout import SampleFn

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

    def make(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        decision_seeds: Sequence[int] | None = None,
        record: bool = False,
        gammas: Sequence[float] | None = None,
    ) -> SampleBatch:
        """Images of prompts, with their negative prompts where any prompt of the run has one.

        Of the run, not of this call: to some pipelines an empty negative prompt is not the same as none, and what
        an image is may not depend on its neighbours.
        """
        texts = [p.text for p in prompts]
        # A sampler without a dial need not know of it.
        dial: dict[str, Any] = {} if gammas is None else {"gammas": gammas}
        if all(p.negative is None for p in (*self.train_prompts, *self.validation_prompts)):
            return self.sampler(texts, seeds, decision_seeds, record, **dial)
        negatives = [p.negative or "" for p in prompts]
        return self.sampler(texts, seeds, decision_seeds, record, negatives, **dial)


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


def over_the_gamma_range(recipe: Recipe, parts: TrainingComponents) -> SampleFn:
    """``parts.make`` with the gammas of a first update, where there is a dial."""

    def make(
        prompts: Sequence[Prompt], seeds: Sequence[int], decision_seeds: Sequence[int] | None, record: bool
    ) -> SampleBatch:
        gammas = draw_gammas(recipe.reward, len(prompts), recipe.seed, 0)
        return parts.make(prompts, seeds, decision_seeds, record, gammas)

    return make
