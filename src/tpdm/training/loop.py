"""The algorithm on one page: roll out groups, compare within them, move the policy, look, keep the best.

Nothing here knows a backbone: images come from a ``Sampler``, scores from a ``Reward``.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from tpdm.config.loader import dump_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.seeding import Stream, derive_seed
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.base import SampleRequest, annotate_numeric_errors
from tpdm.sampling.batch_size import AdaptiveBatchSize
from tpdm.training.batch_sampler import draw_gammas, draw_prompts, gamma_positions
from tpdm.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from tpdm.training.components import TrainingComponents, apply_step_penalty
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.ema import EMA
from tpdm.training.initialization import calibrate_policy, calibrated_reward, calibration_request
from tpdm.training.monitoring.logger import NullRunLogger, RunLogger
from tpdm.training.monitoring.metrics import part_statistics, step_statistics
from tpdm.training.objective import rloo_advantages
from tpdm.training.policy_update import learning_rate, make_optimizer, update_policy
from tpdm.training.rollout import collect_rollout
from tpdm.training.run_identity import run_identity
from tpdm.training.validation import validate


def train_loop(
    recipe: Recipe, parts: TrainingComponents, folder: Path, team: DistributedContext = SINGLE_PROCESS
) -> RunState:
    """Trains until ``recipe.rl.updates``, going on from the newest checkpoint in ``folder`` if there is one.

    Args:
        recipe: what to do; how many processes do it changes no more than rounding.
        parts: of this process.
        folder: of the run; the leading process alone reads and writes there.
        team: the processes that share the work.

    Returns:
        The final state. ``folder`` holds recipe.yaml, metrics.jsonl, checkpoints/ and the artifacts best/ and last/;
        with a composite reward reward-statistics.json too.

    Raises:
        TrainingError: the reward says nothing, a gradient is not finite, or a checkpoint does not fit.
        RewardError: the reward failed. After any error the same call goes on from the newest checkpoint.
    """
    if not team.is_main_process:
        parts = replace(parts, save=_save_nothing)
    optimizer = make_optimizer(parts.policy, recipe.optimizer)
    first = calibration_request(recipe, parts)
    if not recipe.tpm.init_from:
        calibrate_policy(parts.policy, parts.sampler, first)
    parts.policy.load_state_dict(team.broadcast_tensors(parts.policy.state_dict()))
    reference = _frozen_copy(parts.policy) if recipe.rl.kl_weight else None
    average = EMA(parts.policy, recipe.optimizer.ema_decay)
    identity = run_identity(recipe, parts.train_prompts, parts.validation_prompts)
    checkpoints = folder / "checkpoints"
    state = load_checkpoint(checkpoints, parts.policy, average, optimizer, identity, team) or RunState(0)
    # Only now: a recipe that the checkpoint refuses must not replace the one the run was made with.
    if team.is_main_process:
        dump_recipe(recipe, folder / "recipe.yaml")
    fresh = state.update == 0
    everyone = recipe.backbone.shard
    reward = calibrated_reward(parts.reward, parts.sampler, first, folder, fresh, team, everyone)
    parts = replace(parts, reward=reward)
    log = RunLogger(recipe, folder, state.update, parts.listeners) if team.is_main_process else NullRunLogger()
    portion = AdaptiveBatchSize(recipe.rl.update_batch, "rl.update_batch", "decisions")
    if fresh:
        state = validate(recipe, parts, state, log, team)
    updates = range(state.update, recipe.rl.updates)
    total, quiet = recipe.rl.updates, not team.is_main_process
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
                with average.average_parameters(parts.policy):
                    state = validate(recipe, parts, state, log, team)
            # After the validation, so that a run that goes on from here knows of it.
            if state.update % recipe.checkpoint.every == 0 or last:
                team.assert_replicas_equal(parts.policy)
                keep = recipe.checkpoint.keep
                if team.is_main_process:
                    save_checkpoint(checkpoints, parts.policy, average, optimizer, state, identity, keep)
    return state


def _one_update(
    recipe: Recipe,
    parts: TrainingComponents,
    optimizer: torch.optim.Optimizer,
    reference: TimePredictionModule | None,
    update: int,
    team: DistributedContext,
    portion: AdaptiveBatchSize,
) -> dict[str, Any]:
    rl, K = recipe.rl, recipe.rl.samples_per_prompt
    prompts_P = draw_prompts(parts.train_prompts, rl.prompts_per_update, recipe.seed, update)
    places = [(p, k) for p in range(len(prompts_P)) for k in range(K)]
    gammas_P = draw_gammas(recipe.reward, len(prompts_P), recipe.seed, update)
    gammas_B = None if gammas_P is None else [gamma for gamma in gammas_P for _ in range(K)]
    # Samples of a group differ in their decisions alone, unless independent noise is asked for.
    noise = [(p, k if rl.noise == "independent" else 0) for p, k in places]
    parts.policy.eval()
    request = SampleRequest.of(
        [p for p in prompts_P for _ in range(K)],
        seeds=[derive_seed(recipe.seed, Stream.NOISE, update, *n) for n in noise],
        decision_seeds=[derive_seed(recipe.seed, Stream.DECISION, update, *n) for n in places],
        record=True,
        gammas=gammas_B,
        with_negatives=parts.with_negatives,
    )
    rollout = collect_rollout(team, parts.sampler, parts.reward, request)
    sampled = time.monotonic()
    score_B = rollout.scored.score_B
    objective_B = apply_step_penalty(
        score_B, torch.tensor(rollout.steps, dtype=torch.int64, device="cpu"), recipe.reward, gammas_B
    )
    objective_PK = objective_B.view(-1, K)
    place_P = gamma_positions(recipe.reward, gammas_P)
    advantage_B = rloo_advantages(objective_PK, rl.normalize_advantages, place_P).flatten()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe.optimizer, update, rl.updates)
    share = request.rows(rollout.mine)
    with annotate_numeric_errors(share.prompts, share.seeds):
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
        "reward_seconds": round(rollout.score_seconds, 3),
        "learn_seconds": round(time.monotonic() - sampled, 3),
    }


def _save_nothing(name: str, policy: TimePredictionModule, facts: dict[str, Any]) -> None:
    """The leading process saves."""


def _frozen_copy(policy: TimePredictionModule) -> TimePredictionModule:
    copy = TimePredictionModule(policy.shape)
    copy.load_state_dict(policy.state_dict())
    return copy.requires_grad_(False).to(next(policy.parameters()).device)
