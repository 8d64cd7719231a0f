"""The objects that a training run consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpdm.data.prompts import Prompt
from tpdm.policies.tpm import TimePredictionModule
from tpdm.rewards.base import Reward
from tpdm.sampling.base import Sampler
from tpdm.training.monitoring.trackers import TrackerCallback

SavePretrained = Callable[[str, TimePredictionModule, dict[str, Any]], None]


@dataclass(frozen=True)
class TrainingComponents:
    """The objects of a run in one process.

    Nothing here depends on a backbone, so that tests train on a sampler without a pipeline.

    Attributes:
        policy: The TPM, trained in place.
        sampler: Makes images with that policy.
        reward: Scores the images.
        train_prompts: Prompts that updates draw from.
        validation_prompts: Held-out prompts, disjoint from ``train_prompts``.
        save: ``save(name, policy, facts)`` writes the artifact ``name`` ("best" or "last") of the run.
        judges: Rewards by name that score validations in addition to the reward. They have no effect on training.
        listeners: Trackers of the main process.
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
