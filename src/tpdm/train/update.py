"""The update passes: the clipped policy-ratio objective over recorded decisions, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpdm.core import beta
from tpdm.core.objective import MAX_LOG_RATIO, clipped_objective, trajectory_log_ratio
from tpdm.policy import TimePredictor
from tpdm.recipe import OptimizerConfig, RlConfig
from tpdm.rollout import Replay
from tpdm.types import TrainingError


@dataclass(frozen=True)
class UpdateStats:
    """What the passes over one rollout measured; explained in docs/metrics.md.

    Attributes:
        ratio_deviation: largest |ratio - 1| before the first optimizer step; 0 but for rounding.
        clip_fraction, approx_kl, ratio_max: of the last pass.
        entropy: mean over decisions, nats, before the first step.
        kl_to_initial: mean KL to the policy training began with, nats; 0 unless ``kl_weight`` is set.
        grad_norm: largest gradient norm before clipping.
    """

    ratio_deviation: float
    clip_fraction: float
    approx_kl: float
    ratio_max: float
    entropy: float
    kl_to_initial: float
    grad_norm: float


def make_optimizer(policy: TimePredictor, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW as the recipe says."""
    return torch.optim.AdamW(
        policy.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimizerConfig, update: int, updates: int) -> float:
    """Rate of an update in [0, updates): warm-up, then constant, linear to zero or cosine to zero."""
    if update < config.warmup_updates:
        return config.lr * (update + 1) / config.warmup_updates
    done = (update - config.warmup_updates) / max(1, updates - config.warmup_updates)
    if config.lr_schedule == "linear":
        return config.lr * (1 - done)
    if config.lr_schedule == "cosine":
        return config.lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done, dtype=torch.float64))))
    return config.lr


def update_policy(
    policy: TimePredictor,
    optimizer: torch.optim.Optimizer,
    replay: Replay,
    advantage_B: Tensor,
    rl: RlConfig,
    grad_clip: float,
    reference: TimePredictor | None,
) -> UpdateStats:
    """``rl.epochs`` passes over one rollout, one optimizer step each.

    The loss is a mean over trajectories (and, for entropy and KL, over decisions) of the whole rollout, summed
    up from micro-batches of whole trajectories: their size changes memory, not the result.

    Raises:
        TrainingError: the gradient is not finite.
    """
    stats: list[_Pass] = []
    for _ in range(rl.epochs):
        optimizer.zero_grad(set_to_none=True)
        measured = _Pass()
        for first, last in _micro_batches(replay, rl.update_batch):
            _accumulate(policy, replay, replay.part(first, last), advantage_B[first:last], rl, reference, measured)
        norm = float(nn.utils.clip_grad_norm_(policy.parameters(), grad_clip))
        if not norm < float("inf"):
            raise TrainingError(
                f"got a gradient of norm {norm} in the update, expected a finite one; lower optimizer.lr or "
                "look for extreme rewards in metrics.jsonl"
            )
        optimizer.step()
        measured.grad_norm = norm
        stats.append(measured)
    first_pass, last_pass = stats[0], stats[-1]
    return UpdateStats(
        ratio_deviation=first_pass.ratio_deviation,
        clip_fraction=last_pass.clip_fraction,
        approx_kl=last_pass.approx_kl,
        ratio_max=last_pass.ratio_max,
        entropy=first_pass.entropy,
        kl_to_initial=last_pass.kl,
        grad_norm=max(s.grad_norm for s in stats),
    )


@dataclass
class _Pass:
    """Running sums of one pass."""

    ratio_deviation: float = 0.0
    clip_fraction: float = 0.0
    approx_kl: float = 0.0
    ratio_max: float = 0.0
    entropy: float = 0.0
    kl: float = 0.0
    grad_norm: float = 0.0


def _micro_batches(replay: Replay, decisions: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole trajectories with at most so many decisions (one trajectory at least)."""
    lengths = torch.bincount(replay.segment_T, minlength=replay.trajectories).tolist()
    first, total = 0, 0
    for n, length in enumerate(lengths):
        if total and total + length > decisions:
            yield first, n
            first, total = n, 0
        total += length
    yield first, replay.trajectories


def _accumulate(
    policy: TimePredictor,
    whole: Replay,
    part: Replay,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictor | None,
    measured: _Pass,
) -> None:
    """Adds the gradient and the measures of one micro-batch."""
    logp_T, entropy_T, params = policy.evaluate(part.observation, part.action_T)
    logp_T, entropy_T = logp_T.cpu(), entropy_T.cpu()
    decision_share = len(part.action_T) / len(whole.action_T)
    if rl.ratio == "trajectory":
        log_ratio_B = trajectory_log_ratio(logp_T, part.logp_T, part.segment_T, part.trajectories)
        share, advantage = part.trajectories / whole.trajectories, advantage_B
    else:
        log_ratio_B, advantage = logp_T - part.logp_T, advantage_B[part.segment_T]
        share = decision_share
    policy_loss, clipped = clipped_objective(log_ratio_B, advantage, rl.clip)
    loss = share * policy_loss - rl.entropy_weight * decision_share * entropy_T.mean()
    if reference is not None:
        with torch.no_grad():
            initial = beta.beta_params(*reference(part.observation))
        kl = beta.kl(params, initial).mean().cpu()
        loss = loss + rl.kl_weight * decision_share * kl
        measured.kl += decision_share * float(kl.detach())
    torch.autograd.backward(loss)
    deviation = float(torch.expm1(log_ratio_B.detach().clamp_max(MAX_LOG_RATIO)).abs().max())
    measured.ratio_deviation = max(measured.ratio_deviation, deviation)
    measured.ratio_max = max(measured.ratio_max, float(clipped.ratio_max))
    measured.clip_fraction += share * float(clipped.clip_fraction)
    measured.approx_kl += share * float(clipped.approx_kl)
    measured.entropy += decision_share * float(entropy_T.detach().mean())
