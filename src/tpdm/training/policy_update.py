"""One pass: the gradient of the clipped policy-ratio objective over recorded decisions, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from tpdm.config.recipe import OptimizerConfig, RlConfig
from tpdm.core.device import without_autocast
from tpdm.core.errors import NonFiniteError, TrainingError
from tpdm.policies import beta
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.batch_size import AdaptiveBatchSize
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.objective import MAX_LOG_RATIO, clip_diagnostics, clipped_objective, trajectory_log_ratio
from tpdm.training.rollout import RolloutBuffer


def find_nonfinite_trajectory(
    policy: TimePredictionModule,
    whole: GlobalCounts,
    replay: RolloutBuffer | None,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictionModule | None,
) -> int | None:
    """The first of this process's trajectories whose own gradient is not finite; None where only their sum is not."""
    for n in range(0 if replay is None else replay.trajectories):
        assert replay is not None
        part = replay.part(n, n + 1)
        if not len(part.action_T):
            continue
        policy.zero_grad(set_to_none=True)
        _accumulate(policy, whole, part, advantage_B[n : n + 1], rl, reference)
        if not all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None):
            return n
    return None


@dataclass(frozen=True)
class GlobalCounts:
    """What the means of the loss are over: all processes' trajectories, and their decisions that count."""

    trajectories: int
    decisions: int


def all_reduce_counts(team: DistributedContext, replay: RolloutBuffer | None, advantage_B: Tensor) -> GlobalCounts:
    """Counts the rollout of all processes.

    Raises:
        TrainingError: no process has a decision that counts.
    """
    mine = [len(advantage_B), 0 if replay is None else len(replay.action_T)]
    trajectories, decisions = (sum(n) for n in zip(*team.all_gather_object(mine), strict=True))
    if not decisions:
        raise TrainingError(
            f"got no decision that counts in {trajectories} trajectories, expected at least one that the "
            "cap did not overrule; raise sampling.max_steps"
        )
    return GlobalCounts(trajectories, decisions)


@dataclass(frozen=True)
class PassStats:
    """What a pass measured of each ratio (X: trajectories or decisions, as ``rl.ratio`` says) and decision.

    Kept one by one, so that the statistics are taken once, over all of them in their order.
    """

    log_ratio_X: Tensor
    entropy_T: Tensor
    kl_T: Tensor


def accumulate_gradients(
    policy: TimePredictionModule,
    whole: GlobalCounts,
    replay: RolloutBuffer | None,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictionModule | None,
    portion: AdaptiveBatchSize,
) -> PassStats:
    """Makes the gradient of this process's decisions, in parts that fit into memory."""
    if replay is None:  # its trajectories, if any, count with a ratio of 1
        ratios = len(advantage_B) if rl.ratio == "trajectory" else 0
        return PassStats(*(torch.zeros(n, dtype=torch.float32, device="cpu") for n in (ratios, 0, 0)))
    while True:
        try:
            return _joined(
                [
                    _accumulate(policy, whole, replay.part(first, last), advantage_B[first:last], rl, reference)
                    for first, last in _micro_batches(replay, portion.size)
                ]
            )
        except torch.OutOfMemoryError:
            pass  # handled below, where nothing holds the memory of the attempt any more
        policy.zero_grad(set_to_none=True)
        portion.halve(min(portion.size, len(replay.action_T)))


def _joined(parts: Sequence[PassStats]) -> PassStats:
    return PassStats(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PassStats)))


def gather_metrics(team: DistributedContext, mine: PassStats) -> PassStats:
    """What all processes measured, in their order."""
    return PassStats(*(team.gather(getattr(mine, f.name)) for f in fields(PassStats)))


def _micro_batches(replay: RolloutBuffer, decisions: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole trajectories with at most so many decisions (one trajectory at least)."""
    lengths = torch.bincount(replay.segment_T, minlength=replay.trajectories).tolist()
    first, total = 0, 0
    for n, length in enumerate(lengths):
        # A trajectory without decisions never stands alone: a mean over nothing is NaN.
        if total and length and total + length > decisions:
            yield first, n
            first, total = n, 0
        total += length
    yield first, replay.trajectories


@without_autocast()
def _accumulate(
    policy: TimePredictionModule,
    whole: GlobalCounts,
    part: RolloutBuffer,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictionModule | None,
) -> PassStats:
    """Adds the gradient of one micro-batch; its share is that of its real trajectories or decisions in the whole."""
    logp_T, entropy_T, params = policy.evaluate(part.observation, part.action_T)
    logp_T, entropy_T = logp_T.cpu(), entropy_T.cpu()
    decision_share = len(part.action_T) / whole.decisions
    if rl.ratio == "trajectory":
        log_ratio_X = trajectory_log_ratio(logp_T, part.logp_T, part.segment_T, part.trajectories)
        share, advantage_X = part.trajectories / whole.trajectories, advantage_B
    else:
        log_ratio_X, advantage_X = logp_T - part.logp_T, advantage_B[part.segment_T]
        share = decision_share
    policy_loss, _ = clipped_objective(log_ratio_X, advantage_X, rl.clip)
    loss = share * policy_loss - rl.entropy_weight * decision_share * entropy_T.mean()
    kl_T = torch.zeros_like(entropy_T)
    if reference is not None:
        with torch.no_grad():
            initial = beta.beta_params(*reference(part.observation))
        kl_T = beta.kl(params, initial).cpu()
        loss = loss + rl.kl_weight * decision_share * kl_T.mean()
    torch.autograd.backward(loss)
    return PassStats(log_ratio_X.detach(), entropy_T.detach(), kl_T.detach())


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


def make_optimizer(policy: TimePredictionModule, config: OptimizerConfig) -> torch.optim.AdamW:
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
        angle = torch.tensor(torch.pi * done, dtype=torch.float64, device="cpu")
        return config.lr * 0.5 * (1 + float(torch.cos(angle)))
    return config.lr


def update_policy(
    policy: TimePredictionModule,
    optimizer: torch.optim.Optimizer,
    replay: RolloutBuffer | None,
    advantage_B: Tensor,
    rl: RlConfig,
    grad_clip: float,
    reference: TimePredictionModule | None,
    team: DistributedContext = SINGLE_PROCESS,
    portion: AdaptiveBatchSize | None = None,
) -> UpdateStats:
    """``rl.epochs`` passes over one rollout, one optimizer step each.

    The loss is a mean over trajectories (and, for entropy and KL, over decisions) of the whole rollout, summed
    up from micro-batches of whole trajectories and from processes: neither changes more than the rounding.

    Args:
        policy: trained in place, on every process alike.
        optimizer: of its parameters.
        replay: this process's decisions; None where it has none.
        advantage_B: of this process's trajectories, those without decisions too.
        rl: of the recipe.
        grad_clip: largest norm of the whole gradient.
        reference: the policy that ``rl.kl_weight`` pulls to.
        team: the processes that share the rollout.
        portion: decisions per forward pass, fewer where memory is short; ``rl.update_batch`` if not given.

    Raises:
        TrainingError: no process has a decision, or the gradient is not finite: a NonFiniteError, where one of this
            process's trajectories is to blame.
    """
    whole = all_reduce_counts(team, replay, advantage_B)
    portion = portion or AdaptiveBatchSize(rl.update_batch, "rl.update_batch", "decisions")
    passes: list[PassStats] = []
    norms: list[float] = []
    for _ in range(rl.epochs):
        optimizer.zero_grad(set_to_none=True)
        passes.append(accumulate_gradients(policy, whole, replay, advantage_B, rl, reference, portion))
        team.all_reduce_gradients(policy)
        norm = float(nn.utils.clip_grad_norm_(policy.parameters(), grad_clip))
        if not norm < float("inf"):
            raise _not_finite(norm, find_nonfinite_trajectory(policy, whole, replay, advantage_B, rl, reference))
        optimizer.step()
        norms.append(norm)
    first_pass = gather_metrics(team, passes[0])
    last_pass = gather_metrics(team, passes[-1])
    clipped = clip_diagnostics(last_pass.log_ratio_X, rl.clip)
    deviation_X = torch.expm1(first_pass.log_ratio_X.clamp_max(MAX_LOG_RATIO)).abs()
    return UpdateStats(
        ratio_deviation=float(deviation_X.max()),
        clip_fraction=float(clipped.clip_fraction),
        approx_kl=float(clipped.approx_kl),
        ratio_max=float(clipped.ratio_max),
        entropy=float(first_pass.entropy_T.mean()),
        kl_to_initial=float(last_pass.kl_T.mean()) if reference is not None else 0.0,
        grad_norm=max(norms),
    )


def _not_finite(norm: float, culprit: int | None) -> TrainingError:
    message = (
        f"got a gradient of norm {norm} in the update, expected a finite one; lower optimizer.lr or look for extreme "
        "rewards in metrics.jsonl"
    )
    return TrainingError(message) if culprit is None else NonFiniteError(message, culprit)
