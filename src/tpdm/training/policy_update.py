"""The policy update: gradients of the clipped objective over recorded decisions, in micro-batches."""

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
from tpdm.training.rollout import RolloutBuffer, no_decision


@dataclass(frozen=True)
class GlobalCounts:
    """Trajectories and decisions of all processes, the denominators of the means in the loss."""

    trajectories: int
    decisions: int


def all_reduce_counts(context: DistributedContext, buffer: RolloutBuffer | None, advantage_B: Tensor) -> GlobalCounts:
    """Counts the rollout of all processes.

    Raises:
        TrainingError: The cap overruled the decisions of all processes.
    """
    local = [len(advantage_B), 0 if buffer is None else len(buffer.action_T)]
    trajectories, decisions = (sum(n) for n in zip(*context.all_gather_object(local), strict=True))
    if not decisions:
        raise TrainingError(no_decision(trajectories))
    return GlobalCounts(trajectories, decisions)


@dataclass(frozen=True)
class PassStats:
    """Measurements of one pass for each ratio and each decision, so that statistics are taken once over all of them.

    The axis X is trajectories or decisions, as ``rl.ratio`` selects.
    """

    log_ratio_X: Tensor
    entropy_T: Tensor
    kl_T: Tensor


def accumulate_gradients(
    policy: TimePredictionModule,
    counts: GlobalCounts,
    buffer: RolloutBuffer | None,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictionModule | None,
    batch_size: AdaptiveBatchSize,
) -> PassStats:
    """Accumulates the gradient of this process's decisions in micro-batches that fit into memory."""
    if buffer is None:  # trajectories without decisions have a ratio of 1
        ratios = len(advantage_B) if rl.ratio == "trajectory" else 0
        return PassStats(*(torch.zeros(n, dtype=torch.float32, device="cpu") for n in (ratios, 0, 0)))
    while True:
        try:
            return _joined(
                [
                    _accumulate(policy, counts, buffer.part(first, last), advantage_B[first:last], rl, reference)
                    for first, last in _micro_batches(buffer, batch_size.size)
                ]
            )
        except torch.OutOfMemoryError:
            pass  # handled below, after the exception has released the memory of the attempt
        policy.zero_grad(set_to_none=True)
        batch_size.halve(min(batch_size.size, len(buffer.action_T)))


def _joined(parts: Sequence[PassStats]) -> PassStats:
    return PassStats(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PassStats)))


def gather_metrics(context: DistributedContext, local: PassStats) -> PassStats:
    """The measurements of all processes, in the order of the processes."""
    return PassStats(*(context.gather(getattr(local, f.name)) for f in fields(PassStats)))


def _micro_batches(buffer: RolloutBuffer, decisions: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole trajectories with at most ``decisions`` decisions, and at least one trajectory."""
    lengths = torch.bincount(buffer.segment_T, minlength=buffer.trajectories).tolist()
    first, total = 0, 0
    for n, length in enumerate(lengths):
        # A trajectory without decisions joins the one before: the mean over no decision is NaN.
        if total and length and total + length > decisions:
            yield first, n
            first, total = n, 0
        total += length
    yield first, buffer.trajectories


@without_autocast()
def _accumulate(
    policy: TimePredictionModule,
    counts: GlobalCounts,
    part: RolloutBuffer,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictionModule | None,
) -> PassStats:
    """Adds the gradient of one micro-batch, weighted by its share of all trajectories or decisions."""
    logp_T, entropy_T, params = policy.evaluate(part.observation, part.action_T)
    logp_T, entropy_T = logp_T.cpu(), entropy_T.cpu()
    decision_share = len(part.action_T) / counts.decisions
    if rl.ratio == "trajectory":
        log_ratio_X = trajectory_log_ratio(logp_T, part.logp_T, part.segment_T, part.trajectories)
        share, advantage_X = part.trajectories / counts.trajectories, advantage_B
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


def find_nonfinite_trajectory(
    policy: TimePredictionModule,
    counts: GlobalCounts,
    buffer: RolloutBuffer | None,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictionModule | None,
) -> int | None:
    """The first trajectory of this process whose own gradient is not finite. None if only their sum is not finite."""
    if buffer is None:
        return None
    for n in range(buffer.trajectories):
        part = buffer.part(n, n + 1)
        if not len(part.action_T):
            continue
        policy.zero_grad(set_to_none=True)
        _accumulate(policy, counts, part, advantage_B[n : n + 1], rl, reference)
        if not all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None):
            return n
    return None


@dataclass(frozen=True)
class UpdateStats:
    """Measurements of the passes over one rollout (see docs/metrics.md).

    Attributes:
        ratio_deviation: Largest |ratio - 1| before the first optimizer step, 0 up to floating-point rounding.
        clip_fraction: Share of clipped ratios in the last pass, in [0, 1].
        approx_kl: KL from the sampling policy in the last pass, in nats.
        ratio_max: Largest ratio of the last pass.
        entropy: Mean entropy of the decisions before the first step, in nats.
        kl_to_initial: Mean KL to the initial policy, in nats. 0 if ``rl.kl_weight`` is 0.
        grad_norm: Largest gradient norm before clipping.
    """

    ratio_deviation: float
    clip_fraction: float
    approx_kl: float
    ratio_max: float
    entropy: float
    kl_to_initial: float
    grad_norm: float


def make_optimizer(policy: TimePredictionModule, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with the settings of the recipe."""
    return torch.optim.AdamW(
        policy.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, update: int, updates: int) -> None:
    """Sets the rate of an update (see ``learning_rate``) in all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, update, updates)


def learning_rate(config: OptimizerConfig, update: int, updates: int) -> float:
    """Learning rate of an update: a linear warm-up, then constant, linear to zero or cosine to zero.

    Args:
        config: Optimizer section of the recipe.
        update: Number of the update, in [0, updates).
        updates: Updates of the run, >= 1.

    Example:
        >>> config = OptimizerConfig(lr=0.1, warmup_updates=2, lr_schedule="linear")
        >>> [round(learning_rate(config, update, 6), 3) for update in range(6)]
        [0.05, 0.1, 0.1, 0.075, 0.05, 0.025]
    """
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
    buffer: RolloutBuffer | None,
    advantage_B: Tensor,
    rl: RlConfig,
    grad_clip: float,
    reference: TimePredictionModule | None,
    context: DistributedContext = SINGLE_PROCESS,
    batch_size: AdaptiveBatchSize | None = None,
) -> UpdateStats:
    """Makes ``rl.epochs`` passes over one rollout, with one optimizer step each.

    The loss is a mean over the trajectories of all processes. Its entropy and KL terms are means over decisions. The
    gradient is summed over micro-batches of whole trajectories and over processes. Their numbers change the result only
    up to floating-point rounding.

    Args:
        policy: The policy, trained in place, the same in every process.
        optimizer: Optimizer of its parameters.
        buffer: Decisions of this process. None if it has none.
        advantage_B: Advantages of the trajectories of this process, including those without decisions.
        rl: RL section of the recipe.
        grad_clip: Largest norm of the gradient, > 0.
        reference: The initial policy, for ``rl.kl_weight``. None without that term.
        context: The processes that share the rollout. Default: this process only.
        batch_size: Decisions per forward pass, halved if memory is short. Default: ``rl.update_batch``.

    Raises:
        TrainingError: No process has a decision, or the gradient is not finite. It is a NonFiniteError if the gradient
            of one trajectory of this process is not finite.
    """
    counts = all_reduce_counts(context, buffer, advantage_B)
    batch_size = batch_size or AdaptiveBatchSize(rl.update_batch, "rl.update_batch", "decisions")
    passes: list[PassStats] = []
    norms: list[float] = []
    for _ in range(rl.epochs):
        optimizer.zero_grad(set_to_none=True)
        passes.append(accumulate_gradients(policy, counts, buffer, advantage_B, rl, reference, batch_size))
        context.all_reduce_gradients(policy)
        norm = float(nn.utils.clip_grad_norm_(policy.parameters(), grad_clip))
        if not norm < float("inf"):
            raise _not_finite(norm, find_nonfinite_trajectory(policy, counts, buffer, advantage_B, rl, reference))
        optimizer.step()
        norms.append(norm)
    first_pass = gather_metrics(context, passes[0])
    last_pass = gather_metrics(context, passes[-1])
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


def _not_finite(norm: float, trajectory: int | None) -> TrainingError:
    message = (
        f"The gradient norm of the update is {norm}. It must be finite. Lower optimizer.lr, or look for extreme "
        "rewards in metrics.jsonl."
    )
    return TrainingError(message) if trajectory is None else NonFiniteError(message, trajectory)
