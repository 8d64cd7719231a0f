"""The algorithm on one page: roll out groups, compare within them, move the policy, look, keep the best.

Nothing here knows a backbone: images come from a ``Sampler``, scores from a ``Reward``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tpdm.config import dump_recipe
from tpdm.core.objective import additive_reward, discounted_reward, rloo_advantages
from tpdm.policy import TimePredictor
from tpdm.portion import Portion
from tpdm.prompts import Prompt
from tpdm.recipe import Recipe, RewardConfig
from tpdm.rewards.base import Reward
from tpdm.rollout import Generated, Sampler, derive_seed, naming
from tpdm.train.average import WeightAverage
from tpdm.train.calibrate import calibrate_policy, calibrated_reward
from tpdm.train.checkpoint import RunState, load_checkpoint, save_checkpoint
from tpdm.train.deal import deal_prompts
from tpdm.train.dial import deal_gammas, dial_places, dial_points, dial_statistics
from tpdm.train.diary import Diary, NoDiary
from tpdm.train.identity import run_identity
from tpdm.train.keep import keeps_up
from tpdm.train.log import judge_statistics, part_statistics, step_statistics
from tpdm.train.scored import MakeImages, make_scored
from tpdm.train.team import ALONE, Team
from tpdm.train.trackers import Listener
from tpdm.train.update import learning_rate, make_optimizer, update_policy
from tpdm.types import PromptError, TrainingError

# Streams of randomness, so that no two purposes share a seed.
NOISE, DECISION, VALIDATION = 0, 1, 2

SaveArtefact = Callable[[str, TimePredictor, dict[str, Any]], None]


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        policy: trained in place.
        sampler: makes images with that policy.
        reward: scores them.
        train_prompts, validation_prompts: disjoint.
        save: ``save(name, policy, facts)`` writes the artefact ``name`` ("best" or "last") of the run.
        judges: rewards by name that score validations beside the reward, and teach nothing.
        listeners: are told of the run, where this process leads.
    """

    policy: TimePredictor
    sampler: Sampler
    reward: Reward
    train_prompts: Sequence[Prompt]
    validation_prompts: Sequence[Prompt]
    save: SaveArtefact
    judges: Mapping[str, Reward] = field(default_factory=dict)
    listeners: Sequence[Listener] = ()

    def make(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        decision_seeds: Sequence[int] | None = None,
        record: bool = False,
        gammas: Sequence[float] | None = None,
    ) -> Generated:
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


def priced(score_B: Tensor, steps_B: Tensor, config: RewardConfig, gammas_B: Sequence[float] | None = None) -> Tensor:
    """The objective of each image: its score with the price of its steps, in the recipe's form.

    ``gammas_B`` are the discounts of a dial, one for each image; None takes the recipe's.
    """
    if config.form == "additive":
        return additive_reward(score_B, steps_B, config.step_cost)
    gamma = config.gamma if gammas_B is None else torch.tensor(gammas_B, dtype=torch.float64, device=score_B.device)
    return discounted_reward(score_B, steps_B, gamma, config.offset)


def train_loop(recipe: Recipe, parts: Parts, folder: Path, team: Team = ALONE) -> RunState:
    """Trains until ``recipe.rl.updates``, going on from the newest checkpoint in ``folder`` if there is one.

    Args:
        recipe: what to do; how many processes do it changes no more than rounding.
        parts: of this process.
        folder: of the run; the leading process alone reads and writes there.
        team: the processes that share the work.

    Returns:
        The final state. ``folder`` holds recipe.yaml, metrics.jsonl, checkpoints/ and the artefacts best/ and last/;
        with a composite reward reward-statistics.json too.

    Raises:
        TrainingError: the reward says nothing, a gradient is not finite, or a checkpoint does not fit.
        RewardError: the reward failed. After any error the same call goes on from the newest checkpoint.
    """
    if not team.leads:
        parts = replace(parts, save=_save_nothing)
    optimizer = make_optimizer(parts.policy, recipe.optimizer)
    first_make = _over_the_dial(recipe, parts)
    if not recipe.tpm.init_from:
        calibrate_policy(parts.policy, first_make, parts.train_prompts, recipe.seed)
    parts.policy.load_state_dict(team.tensors_from_lead(parts.policy.state_dict()))
    reference = _frozen_copy(parts.policy) if recipe.rl.kl_weight else None
    average = WeightAverage(parts.policy, recipe.optimizer.average)
    identity = run_identity(recipe, parts.train_prompts, parts.validation_prompts)
    checkpoints = folder / "checkpoints"
    state = load_checkpoint(checkpoints, parts.policy, average, optimizer, identity, team) or RunState(0)
    # Only now: a recipe that the checkpoint refuses must not replace the one the run was made with.
    if team.leads:
        dump_recipe(recipe, folder / "recipe.yaml")
    fresh = state.update == 0
    reward = calibrated_reward(parts.reward, first_make, parts.train_prompts, recipe.seed, folder, fresh, team)
    parts = replace(parts, reward=reward)
    log = Diary(recipe, folder, state.update, parts.listeners) if team.leads else NoDiary()
    portion = Portion(recipe.rl.update_batch, "rl.update_batch", "decisions")
    if fresh:
        state = _validate(recipe, parts, state, log, team)
    updates = range(state.update, recipe.rl.updates)
    total, quiet = recipe.rl.updates, not team.leads
    with tqdm(updates, desc="train", initial=state.update, total=total, dynamic_ncols=True, disable=quiet) as bar:
        for update in bar:
            began = time.monotonic()
            row = _one_update(recipe, parts, optimizer, reference, update, team, portion)
            average.update(parts.policy, update + 1)
            seconds = round(state.seconds + time.monotonic() - began, 2)
            state = replace(state, update=update + 1, seconds=seconds)
            log.write({"kind": "train", "update": state.update, **row, "seconds": seconds})
            bar.set_postfix(score=f"{row['score_mean']:.3f}", steps=f"{row['steps_mean']:.1f}")
            last = state.update == recipe.rl.updates
            if state.update % recipe.validation.every == 0 or last:
                with average.worn_by(parts.policy):
                    state = _validate(recipe, parts, state, log, team)
            # After the validation, so that a run that goes on from here knows of it.
            if state.update % recipe.checkpoint.every == 0 or last:
                team.check_equal(parts.policy)
                keep = recipe.checkpoint.keep
                if team.leads:
                    save_checkpoint(checkpoints, parts.policy, average, optimizer, state, identity, keep)
    return state


def _over_the_dial(recipe: Recipe, parts: Parts) -> MakeImages:
    """``parts.make`` with the gammas of a first update, where there is a dial."""

    def make(
        prompts: Sequence[Prompt], seeds: Sequence[int], decision_seeds: Sequence[int] | None, record: bool
    ) -> Generated:
        gammas = deal_gammas(recipe.reward, len(prompts), recipe.seed, 0)
        return parts.make(prompts, seeds, decision_seeds, record, gammas)

    return make


def _one_update(
    recipe: Recipe,
    parts: Parts,
    optimizer: torch.optim.Optimizer,
    reference: TimePredictor | None,
    update: int,
    team: Team,
    portion: Portion,
) -> dict[str, Any]:
    rl, K = recipe.rl, recipe.rl.samples_per_prompt
    prompts_P = deal_prompts(parts.train_prompts, rl.prompts_per_update, recipe.seed, update)
    places = [(p, k) for p in range(len(prompts_P)) for k in range(K)]
    gammas_P = deal_gammas(recipe.reward, len(prompts_P), recipe.seed, update)
    gammas_B = None if gammas_P is None else [gamma for gamma in gammas_P for _ in range(K)]
    # Samples of a group differ in their decisions alone, unless independent noise is asked for.
    noise = [(p, k if rl.noise == "independent" else 0) for p, k in places]
    prompts_B = [p for p in prompts_P for _ in range(K)]
    seeds = [derive_seed(recipe.seed, NOISE, update, *n) for n in noise]
    parts.policy.eval()
    rollout = make_scored(
        team,
        parts.make,
        parts.reward,
        prompts_B,
        seeds,
        decision_seeds=[derive_seed(recipe.seed, DECISION, update, *n) for n in places],
        gammas=gammas_B,
    )
    sampled = time.monotonic()
    score_B = rollout.scored.score_B
    objective_B = priced(score_B, torch.tensor(rollout.steps), recipe.reward, gammas_B)
    objective_PK = objective_B.view(-1, K)
    place_P = dial_places(recipe.reward, gammas_P)
    advantage_B = rloo_advantages(objective_PK, rl.normalise_advantages, place_P).flatten()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe.optimizer, update, rl.updates)
    with naming([p.text for p in prompts_B[rollout.mine]], seeds[rollout.mine]):
        stats = update_policy(
            parts.policy,
            optimizer,
            rollout.replay(),
            advantage_B[rollout.mine],
            rl,
            recipe.optimizer.grad_clip,
            reference,
            team,
            portion,
        )
    return {
        "score_mean": float(score_B.mean()),
        "score_sd": float(score_B.std(correction=0)),
        **part_statistics(rollout.scored.parts),
        "objective_mean": float(objective_B.mean()),
        "objective_sd_within_group": float(objective_PK.std(dim=1).mean()),
        "silent_groups": float((objective_PK.amax(1) == objective_PK.amin(1)).float().mean()),
        **step_statistics(rollout.steps),
        **asdict(stats),
        "lr": optimizer.param_groups[0]["lr"],
        "learn_seconds": round(time.monotonic() - sampled, 3),
    }


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


def _validate(recipe: Recipe, parts: Parts, state: RunState, log: Diary | NoDiary, team: Team) -> RunState:
    """Held-out prompts on fixed noise under the mode of the policy; saves last/, and best/ where it keeps up."""
    if not parts.validation_prompts:
        raise PromptError(
            "got no validation prompts, expected at least one; raise prompts.held_out_fraction or add prompts"
        )
    n = recipe.validation.samples_per_prompt
    points = dial_points(recipe.reward, recipe.validation.dial_points)
    images = [(p, i) for i, p in enumerate(p for p in parts.validation_prompts for _ in range(n))]
    # The same images at every gamma, one gamma after the other: neighbours in a batch take about as many steps.
    gammas_B = None if points is None else [gamma for gamma in points for _ in images]
    images = images * (1 if points is None else len(points))
    prompts_B = [p for p, _ in images]
    parts.policy.eval()
    seeds = [derive_seed(recipe.seed, VALIDATION, i) for _, i in images]
    rollout = make_scored(team, parts.make, parts.reward, prompts_B, seeds, gammas=gammas_B, judges=parts.judges)
    score_B = rollout.scored.score_B
    if state.update == 0:
        _refuse_constant(score_B, parts.reward.name, prompts_B[0].text)
    objective_B = priced(score_B, torch.tensor(rollout.steps), recipe.reward, gammas_B)
    objective = float(objective_B.mean())
    row = {
        "score_mean": float(score_B.mean()),
        "score_sd": float(score_B.std(correction=0)),
        **part_statistics(rollout.scored.parts),
        "objective_mean": objective,
        **step_statistics(rollout.steps),
        **dial_statistics(gammas_B, score_B, objective_B, rollout.steps),
        **judge_statistics(rollout.judged),
    }
    log.write({"kind": "validation", "update": state.update, **row})
    if rollout.generated is not None:
        log.show(state.update, prompts_B, seeds, rollout.generated, score_B)
    facts = {"update": state.update, "validation": row}
    parts.save("last", parts.policy, facts)
    now = tuple(objective_B.tolist())
    if state.record is None or keeps_up(now, state.record):
        parts.save("best", parts.policy, facts)
        state = replace(state, best_objective=objective, best_update=state.update)
    if state.record is None or sum(now) > sum(state.record):
        state = replace(state, record=now)
    return state


def _save_nothing(name: str, policy: TimePredictor, facts: dict[str, Any]) -> None:
    """The leading process saves."""


def _frozen_copy(policy: TimePredictor) -> TimePredictor:
    copy = TimePredictor(policy.shape)
    copy.load_state_dict(policy.state_dict())
    return copy.requires_grad_(False).to(next(policy.parameters()).device)
