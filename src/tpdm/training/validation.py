"""Validation: held-out prompts on fixed noise, and the selection of the best policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tpdm.config.recipe import Recipe
from tpdm.core.errors import PromptError, TrainingError
from tpdm.core.seeding import Stream, derive_seed
from tpdm.sampling.base import SampleRequest
from tpdm.training.checkpoint import RunState
from tpdm.training.components import TrainingComponents
from tpdm.training.distributed.context import DistributedContext
from tpdm.training.monitoring.logger import RunLogger
from tpdm.training.monitoring.metrics import (
    gamma_points,
    gamma_statistics,
    judge_statistics,
    part_statistics,
    step_statistics,
)
from tpdm.training.objective import apply_step_penalty
from tpdm.training.rollout import collect_rollout

SIGNIFICANT = 1.96  # standard errors: 95 %, two-sided


def is_not_worse(objectives: Sequence[float], record: Sequence[float], samples: int = 1, points: int = 1) -> bool:
    """Whether a validation is not significantly worse than the record.

    The highest of many noisy validations is partly luck. Both validations have the same images, so that the error of
    their difference can be estimated. Within that error the newer policy is selected. The error is over prompts,
    because images of one prompt, and one image at several gammas, are correlated.

    Args:
        objectives: Objectives of the validation images now.
        record: Objectives of the same images when their mean was highest.
        samples: Consecutive images of one prompt. Default: 1.
        points: Number of gammas. All images of one gamma come before those of the next. Default: 1.

    Returns:
        False if the mean difference is more than 1.96 standard errors below 0.

    Example:
        >>> is_not_worse([0.8, 0.6, 0.7], record=[0.7, 0.8, 0.7])
        True
        >>> is_not_worse([0.5, 0.6, 0.5], record=[0.7, 0.8, 0.7])
        False
    """
    now_B, best_B = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (objectives, record))
    difference_B = now_B - best_B
    mean, difference_P = float(difference_B.mean()), difference_B.view(points, -1, samples).mean((0, 2))
    if mean >= 0 or len(difference_P) < 2:
        return mean >= 0
    return mean > -SIGNIFICANT * float(difference_P.std()) / len(difference_P) ** 0.5


def validate(
    recipe: Recipe,
    components: TrainingComponents,
    state: RunState,
    context: DistributedContext,
    logger: RunLogger | None,
) -> RunState:
    """Measures the mode of the policy on held-out prompts, and saves last/ and perhaps best/.

    Args:
        recipe: Recipe of the run.
        components: Objects of the run.
        state: State of the run.
        context: The processes of the run.
        logger: Logger of the main process. None in other processes.

    Returns:
        The state with the selected update and the record.

    Raises:
        PromptError: There are no validation prompts.
        TrainingError: The untrained policy gets the same score for all images.
    """
    request = validation_request(recipe, components)
    components.policy.eval()
    rollout = collect_rollout(context, components.sampler, components.reward, request, components.judges)
    score_B = rollout.scored.score_B
    if state.update == 0:
        _refuse_constant(score_B, components.reward.name, request.prompts[0])
    steps_B = torch.tensor(rollout.steps, dtype=torch.int64, device="cpu")
    objective_B = apply_step_penalty(score_B, steps_B, recipe.reward, request.gammas)
    objective, objectives = float(objective_B.mean()), tuple(objective_B.tolist())
    row = {
        "score_mean": float(score_B.mean()),
        "score_sd": float(score_B.std(correction=0)),
        **part_statistics(rollout.scored.parts),
        "objective_mean": objective,
        **step_statistics(rollout.steps),
        **gamma_statistics(request.gammas, score_B, objective_B, rollout.steps),
        **judge_statistics(rollout.judged),
    }
    samples = recipe.validation.samples_per_prompt
    points = len(rollout.steps) // (samples * len(components.validation_prompts))
    best = state.record is None or is_not_worse(objectives, state.record, samples, points)
    if logger is not None:
        logger.write({"kind": "validation", "update": state.update, **row})
        if rollout.generated is not None:
            logger.show(state.update, request, rollout.generated, score_B)
        for name in ("last", "best") if best else ("last",):
            components.save(name, components.policy, {"update": state.update, "validation": row})
    if best:
        state = replace(state, best_objective=objective, best_update=state.update)
    if state.record is None or sum(objectives) > sum(state.record):
        state = replace(state, record=objectives)
    return state


def validation_request(recipe: Recipe, components: TrainingComponents) -> SampleRequest:
    """The images of every validation of a run. Images of one gamma are consecutive: they take about equal steps.

    Raises:
        PromptError: There are no validation prompts.
    """
    if not components.validation_prompts:
        raise PromptError(
            "There are no validation prompts. At least one is needed. Raise prompts.held_out_fraction or add prompts."
        )
    samples = recipe.validation.samples_per_prompt
    points = gamma_points(recipe.reward, recipe.validation.gamma_points)
    prompts = [p for p in components.validation_prompts for _ in range(samples)]
    seeds = [derive_seed(recipe.seed, Stream.VALIDATION, i) for i in range(len(prompts))]
    gammas = None if points is None else [gamma for gamma in points for _ in prompts]
    repeats = 1 if points is None else len(points)
    return SampleRequest.of(prompts * repeats, seeds * repeats, gammas=gammas, with_negatives=components.with_negatives)


def _refuse_constant(score_B: Tensor, reward: str, prompt: str) -> None:
    """Refuses a reward that gives all images the same score: only the step penalty would remain to learn.

    Only the validation of the untrained policy is checked. Later equal scores may be correct, for example if a score
    saturates. An error there would stop every resumed run at the same update.
    """
    if len(score_B) > 1 and bool((score_B == score_B[0]).all()):
        raise TrainingError(
            f"Reward '{reward}' scores all {len(score_B)} validation images {float(score_B[0]):g}. The first prompt is "
            f"'{prompt}'. Scores must differ. Try the reward on two different images, or raise validation.prompts."
        )
