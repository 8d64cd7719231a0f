"""The training algorithm: draw, collect, compare, update. Nothing here depends on a backbone or a reward."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from tpdm.config.loader import dump_recipe
from tpdm.config.recipe import Recipe
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.base import annotate_numeric_errors
from tpdm.sampling.batch_size import AdaptiveBatchSize
from tpdm.training.batch_sampler import BatchSampler
from tpdm.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from tpdm.training.components import TrainingComponents
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.ema import EMA
from tpdm.training.initialization import calibrate_policy, calibrated_reward, calibration_request
from tpdm.training.monitoring.logger import RunLogger
from tpdm.training.monitoring.metrics import part_statistics, step_statistics
from tpdm.training.objective import advantages
from tpdm.training.policy_update import make_optimizer, set_learning_rate, update_policy
from tpdm.training.rollout import collect_rollout
from tpdm.training.run_identity import run_identity
from tpdm.training.validation import validate


def train_loop(
    recipe: Recipe, components: TrainingComponents, folder: Path, context: DistributedContext = SINGLE_PROCESS
) -> RunState:
    """Trains until ``recipe.rl.updates``. Resumes from the newest checkpoint in ``folder`` if there is one.

    Args:
        recipe: Recipe of the run. The number of processes changes its result only up to floating-point rounding.
        components: Objects of the run in this process.
        folder: Folder of the run. Only the main process reads and writes it.
        context: The processes that share the work. Default: this process only.

    Returns:
        The final state. ``folder`` contains recipe.yaml, metrics.jsonl, checkpoints/ and the artifacts best/ and last/.
        A composite reward adds reward-statistics.json.

    Raises:
        TrainingError: The reward is constant, a gradient is not finite, or a checkpoint belongs to another recipe.
        RewardError: The reward failed. After any error the same call resumes from the newest checkpoint.
    """
    policy, optimizer = components.policy, make_optimizer(components.policy, recipe.optimizer)
    calibration = calibration_request(recipe, components)
    if not recipe.tpm.init_from:
        calibrate_policy(policy, components.sampler, calibration)
    policy.load_state_dict(context.broadcast_tensors(policy.state_dict()))
    reference = _frozen_copy(policy) if recipe.rl.kl_weight else None
    ema = EMA(policy, recipe.optimizer.ema_decay)
    identity = run_identity(recipe, components.train_prompts, components.validation_prompts)
    checkpoints = folder / "checkpoints"
    state = load_checkpoint(checkpoints, policy, ema, optimizer, identity, context) or RunState(0)
    # After load_checkpoint: a recipe that it refuses must not replace the recipe of the run.
    if context.is_main_process:
        dump_recipe(recipe, folder / "recipe.yaml")
    fresh, sharded = state.update == 0, recipe.backbone.shard
    reward = calibrated_reward(components.reward, components.sampler, calibration, folder, fresh, context, sharded)
    components = replace(components, reward=reward)
    logger = RunLogger(recipe, folder, state.update, components.listeners) if context.is_main_process else None
    batch_sampler = BatchSampler(recipe, components.train_prompts, components.with_negatives)
    batch_size = AdaptiveBatchSize(recipe.rl.update_batch, "rl.update_batch", "decisions")
    if fresh:
        state = validate(recipe, components, state, context, logger)
    bar = tqdm(
        range(state.update, recipe.rl.updates),
        desc="train",
        initial=state.update,
        total=recipe.rl.updates,
        dynamic_ncols=True,
        disable=not context.is_main_process,
    )
    with bar:
        for update in bar:
            began = time.monotonic()
            row = _one_update(recipe, components, batch_sampler, optimizer, reference, update, context, batch_size)
            ema.update(policy, update + 1)
            seconds = round(state.seconds + time.monotonic() - began, 2)
            state = replace(state, update=update + 1, seconds=seconds)
            if logger is not None:
                logger.write({"kind": "train", "update": state.update, **row, "seconds": seconds})
            bar.set_postfix(score=f"{row['score_mean']:.3f}", steps=f"{row['steps_mean']:.1f}")
            last = state.update == recipe.rl.updates
            if state.update % recipe.validation.every == 0 or last:
                with ema.average_parameters(policy):
                    state = validate(recipe, components, state, context, logger)
            # After the validation, so that the checkpoint contains its result.
            if state.update % recipe.checkpoint.every == 0 or last:
                context.assert_replicas_equal(policy)
                if context.is_main_process:
                    save_checkpoint(checkpoints, policy, ema, optimizer, state, identity, recipe.checkpoint.keep)
    return state


def _one_update(
    recipe: Recipe,
    components: TrainingComponents,
    batch_sampler: BatchSampler,
    optimizer: torch.optim.Optimizer,
    reference: TimePredictionModule | None,
    update: int,
    context: DistributedContext,
    batch_size: AdaptiveBatchSize,
) -> dict[str, Any]:
    """Trains the policy on one rollout. Returns the metrics of the update."""
    components.policy.eval()
    request = batch_sampler.draw(update)
    rollout = collect_rollout(context, components.sampler, components.reward, request)
    sampled = time.monotonic()
    objective_PK, advantage_B = advantages(rollout.scored.score_B, rollout.steps, request.gammas, recipe)
    set_learning_rate(optimizer, recipe.optimizer, update, recipe.rl.updates)
    share = request.rows(rollout.share)
    with annotate_numeric_errors(share.prompts, share.seeds):
        stats = update_policy(
            components.policy,
            optimizer,
            rollout.buffer(),
            advantage_B[rollout.share],
            recipe.rl,
            recipe.optimizer.grad_clip,
            reference,
            context,
            batch_size,
        )
    return {
        "score_mean": float(rollout.scored.score_B.mean()),
        "score_sd": float(rollout.scored.score_B.std(correction=0)),
        **part_statistics(rollout.scored.parts),
        "objective_mean": float(objective_PK.flatten().mean()),
        "objective_sd_within_group": float(objective_PK.std(dim=1).mean()),
        "silent_groups": float((objective_PK.amax(1) == objective_PK.amin(1)).float().mean()),
        **step_statistics(rollout.steps),
        **asdict(stats),
        "lr": optimizer.param_groups[0]["lr"],
        "reward_seconds": round(rollout.score_seconds, 3),
        "learn_seconds": round(time.monotonic() - sampled, 3),
    }


def _frozen_copy(policy: TimePredictionModule) -> TimePredictionModule:
    copy = TimePredictionModule(policy.shape)
    copy.load_state_dict(policy.state_dict())
    return copy.requires_grad_(False).to(next(policy.parameters()).device)
