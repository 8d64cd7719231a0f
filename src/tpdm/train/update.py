"""An update: some passes over one rollout, an optimizer step each, and what they measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpdm.core.objective import MAX_LOG_RATIO, clip_diagnostics
from tpdm.policy import TimePredictor
from tpdm.portion import Portion
from tpdm.recipe import OptimizerConfig, RlConfig
from tpdm.rollout import Replay
from tpdm.train.passes import Measured, count_amount, everywhere, find_culprit, make_gradient
from tpdm.train.team import ALONE, Team
from tpdm.types import NumbersError, TrainingError


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
        angle = torch.tensor(torch.pi * done, dtype=torch.float64, device="cpu")
        return config.lr * 0.5 * (1 + float(torch.cos(angle)))
    return config.lr


def update_policy(
    policy: TimePredictor,
    optimizer: torch.optim.Optimizer,
    replay: Replay | None,
    advantage_B: Tensor,
    rl: RlConfig,
    grad_clip: float,
    reference: TimePredictor | None,
    team: Team = ALONE,
    portion: Portion | None = None,
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
        TrainingError: no process has a decision, or the gradient is not finite: a NumbersError, where one of this
            process's trajectories is to blame.
    """
    whole = count_amount(team, replay, advantage_B)
    portion = portion or Portion(rl.update_batch, "rl.update_batch", "decisions")
    passes: list[Measured] = []
    norms: list[float] = []
    for _ in range(rl.epochs):
        optimizer.zero_grad(set_to_none=True)
        passes.append(make_gradient(policy, whole, replay, advantage_B, rl, reference, portion))
        team.sum_gradients(policy)
        norm = float(nn.utils.clip_grad_norm_(policy.parameters(), grad_clip))
        if not norm < float("inf"):
            raise _not_finite(norm, find_culprit(policy, whole, replay, advantage_B, rl, reference))
        optimizer.step()
        norms.append(norm)
    first_pass = everywhere(team, passes[0])
    last_pass = everywhere(team, passes[-1])
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
    return TrainingError(message) if culprit is None else NumbersError(message, culprit)
