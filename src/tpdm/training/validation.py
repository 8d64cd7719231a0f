"""Which validation is kept as best/: the newest that the record is not significantly above."""

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
from tpdm.training.components import TrainingComponents, apply_step_penalty
from tpdm.training.distributed.context import DistributedContext
from tpdm.training.monitoring.logger import NullRunLogger, RunLogger
from tpdm.training.monitoring.metrics import (
    gamma_points,
    gamma_statistics,
    judge_statistics,
    part_statistics,
    step_statistics,
)
from tpdm.training.rollout import collect_rollout

SIGNIFICANT = 1.96  # standard errors: 95 %, two-sided


def is_not_worse(objectives: Sequence[float], record: Sequence[float], samples: int = 1, points: int = 1) -> bool:
    """Whether a validation is at least as good as the record, as far as the same images can tell.

    The highest of many noisy validations is a lucky one. With equal images the difference has an error of its own;
    where it is within that error, the newer policy has learnt longer, and is taken. The error is over prompts: images
    of one prompt, and one image at several gammas, are better and worse together.

    Args:
        objectives: of the validation images now.
        record: of the same images, when their mean was highest.
        samples: images of one prompt, which lie side by side.
        points: gammas of a dial, at each of which all images are made, one gamma after the other.

    Returns:
        True unless the mean difference is more than 1.96 of its standard errors below 0.
    """
    now_B, best_B = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (objectives, record))
    difference_B = now_B - best_B
    mean, difference_P = float(difference_B.mean()), difference_B.view(points, -1, samples).mean((0, 2))
    if mean >= 0 or len(difference_P) < 2:
        return mean >= 0
    return mean > -SIGNIFICANT * float(difference_P.std()) / len(difference_P) ** 0.5


def validate(
    recipe: Recipe, parts: TrainingComponents, state: RunState, log: RunLogger | NullRunLogger, team: DistributedContext
) -> RunState:
    """Held-out prompts on fixed noise under the mode of the policy; saves last/, and best/ where it keeps up."""
    if not parts.validation_prompts:
        raise PromptError(
            "got no validation prompts, expected at least one; raise prompts.held_out_fraction or add prompts"
        )
    n = recipe.validation.samples_per_prompt
    points = gamma_points(recipe.reward, recipe.validation.gamma_points)
    images = [(p, i) for i, p in enumerate(p for p in parts.validation_prompts for _ in range(n))]
    # The same images at every gamma, one gamma after the other: neighbours in a batch take about as many steps.
    gammas_B = None if points is None else [gamma for gamma in points for _ in images]
    images = images * (1 if points is None else len(points))
    seeds = [derive_seed(recipe.seed, Stream.VALIDATION, i) for _, i in images]
    request = SampleRequest.of([p for p, _ in images], seeds, gammas=gammas_B, with_negatives=parts.with_negatives)
    parts.policy.eval()
    rollout = collect_rollout(team, parts.sampler, parts.reward, request, parts.judges)
    score_B = rollout.scored.score_B
    if state.update == 0:
        _refuse_constant(score_B, parts.reward.name, request.prompts[0])
    objective_B = apply_step_penalty(
        score_B, torch.tensor(rollout.steps, dtype=torch.int64, device="cpu"), recipe.reward, gammas_B
    )
    objective = float(objective_B.mean())
    row = {
        "score_mean": float(score_B.mean()),
        "score_sd": float(score_B.std(correction=0)),
        **part_statistics(rollout.scored.parts),
        "objective_mean": objective,
        **step_statistics(rollout.steps),
        **gamma_statistics(gammas_B, score_B, objective_B, rollout.steps),
        **judge_statistics(rollout.judged),
    }
    log.write({"kind": "validation", "update": state.update, **row})
    if rollout.generated is not None:
        log.show(state.update, request, rollout.generated, score_B)
    facts = {"update": state.update, "validation": row}
    parts.save("last", parts.policy, facts)
    now = tuple(objective_B.tolist())
    if state.record is None or is_not_worse(now, state.record, n, len(points or [0])):
        parts.save("best", parts.policy, facts)
        state = replace(state, best_objective=objective, best_update=state.update)
    if state.record is None or sum(now) > sum(state.record):
        state = replace(state, record=now)
    return state


def _refuse_constant(score_B: Tensor, reward: str, prompt: str) -> None:
    """A reward that gives one number for every image would leave only the price of steps to be learnt.

    Asked of the untrained policy's validation alone: later, equal scores may be honest (a few easy prompts in one
    update, a score that saturates), and stopping there would stop every resumed run at the same place.
    """
    if len(score_B) > 1 and bool((score_B == score_B[0]).all()):
        raise TrainingError(
            f"got the score {float(score_B[0]):g} from reward '{reward}' for all {len(score_B)} validation "
            f"images (the first is of prompt '{prompt}'), expected different ones; try the reward on two unlike "
            "images, or raise validation.prompts"
        )
