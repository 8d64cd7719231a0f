"""What training maximises: rewards with a price on steps, advantages within a group, the clipped ratio.

Axes: B trajectories, P prompts, K trajectories per prompt, T decisions of all trajectories. Results are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tpdm.core.device import wide
from tpdm.core.errors import ConfigError

MAX_LOG_RATIO = 20.0
"""Log-ratios act within [-20, 20], so that exp stays finite; beyond it a trajectory gives no gradient."""

MIN_STD = 1e-6
"""Floor of the divisor when advantages are normalized: equal rewards give zeros, not amplified rounding."""

GROUP_FLOOR = 0.05
"""Floor of a prompt's own divisor, as a share of the batch's: what is smaller than that stays small."""

DIAL_WIDTH = 0.3
"""Reach of a divisor over the dial, whose whole length is 2: standard deviation of the weights."""

Normalize = Literal["none", "batch", "group", "gamma"]


def discounted_reward(score_B: Tensor, steps_B: Tensor, gamma: float | Tensor, offset: float = 0.0) -> Tensor:
    """Eq. (9): R = (score + offset) (1 - gamma^N) / (N (1 - gamma)); gamma = 1 gives score + offset.

    The factor falls from 1 at N = 1, so that steps cost something only while score + offset > 0; below 0 the
    same formula pays for steps. Hence the release's offset, 3.10 = 3 standard deviations of ImageReward.

    Args:
        score_B: image score, in the reward's unit.
        steps_B: N, network evaluations, at least 1.
        gamma: discount in (0, 1], one number or one per trajectory.
        offset: added to the score first.
    """
    gamma_B = torch.as_tensor(gamma, dtype=torch.float64, device="cpu")
    if not bool(((gamma_B > 0) & (gamma_B <= 1)).all()):
        raise ConfigError(f"Got gamma={gamma}; it must lie in (0, 1] (the paper uses .97 to .85).")
    n_B = _counts(steps_B)
    rest_B = torch.where(gamma_B < 1.0, 1.0 - gamma_B, torch.ones_like(gamma_B))
    factor_B = torch.where(gamma_B < 1.0, -torch.expm1(n_B * torch.log(gamma_B)) / (n_B * rest_B), 1.0)
    return ((wide(score_B) + offset) * factor_B).to(score_B.device, torch.float32)


def additive_reward(score_B: Tensor, steps_B: Tensor, cost: float | Tensor) -> Tensor:
    """R = score - cost N: every step costs the same, whatever the sign of the score.

    Args:
        score_B: image score, in the reward's unit.
        steps_B: N, at least 1.
        cost: price of one step in the unit of the score, at least 0, one number or one per trajectory.
    """
    cost_B = torch.as_tensor(cost, dtype=torch.float64, device="cpu")
    if not bool((cost_B >= 0).all()):
        raise ConfigError(f"Got cost={cost}; it must be 0 or more, or training would pay for steps.")
    return (wide(score_B) - cost_B * _counts(steps_B)).to(score_B.device, torch.float32)


def rloo_advantages(reward_PK: Tensor, normalize: Normalize = "none", place_P: Tensor | None = None) -> Tensor:
    """A_k = R_k - mean of the other K - 1 rewards of the same prompt: eq. (7)'s leave-one-out baseline.

    Args:
        reward_PK: one row per prompt, K >= 2.
        normalize: divides by a (population) standard deviation: "batch" by that of all P K advantages; "group" by
            that of the prompt's own, but at least ``GROUP_FLOOR`` of the batch's. In "group" a prompt whose samples
            differ by little more than the price of a step is heard as clearly as one whose pictures differ widely.
            "gamma" by that of the prompts that stand near on the dial: where steps are dear, pictures differ more, and
            a divisor for all would leave the other end unheard.
        place_P: with "gamma", where each prompt stands in [-1, 1] (``core.dial.gamma_position``); None is "batch".

    Returns:
        (P, K); every row sums to 0.
    """
    if reward_PK.ndim != 2 or reward_PK.shape[1] < 2:
        raise ConfigError(
            f"Got rewards of shape {tuple(reward_PK.shape)}; leave-one-out needs (prompts, samples) with at "
            "least 2 samples per prompt."
        )
    wide_PK = wide(reward_PK)
    advantage_PK = wide_PK - (wide_PK.sum(1, keepdim=True) - wide_PK) / (reward_PK.shape[1] - 1)
    if normalize == "gamma" and place_P is not None:
        advantage_PK = advantage_PK / _std_nearby(advantage_PK, place_P)
    elif normalize != "none":
        std = advantage_PK.std(correction=0).clamp_min(MIN_STD)
        if normalize == "group":
            std = advantage_PK.std(dim=1, correction=0, keepdim=True).clamp_min(GROUP_FLOOR * float(std))
        advantage_PK = advantage_PK / std
    return advantage_PK.to(reward_PK.device, torch.float32)


def _std_nearby(advantage_PK: Tensor, place_P: Tensor) -> Tensor:
    """Standard deviation (P, 1) around every prompt, of all with weights that fall with the distance on the dial."""
    distance_PP = (wide(place_P)[:, None] - wide(place_P)) / DIAL_WIDTH
    weight_PP = torch.exp(-distance_PP.square() / 2)
    variance_P = advantage_PK.square().mean(1)
    return ((weight_PP @ variance_P) / weight_PP.sum(1)).sqrt().clamp_min(MIN_STD)[:, None]


def trajectory_log_ratio(logp_new_T: Tensor, logp_old_T: Tensor, segment_T: Tensor, n: int) -> Tensor:
    """ln(pi_new(y|s) / pi_old(y|s)) of n trajectories by eq. (8): sums of log-prob differences.

    The differences are summed, not the log-probs, so that nothing cancels: equal policies give exactly 0.

    Args:
        logp_new_T: log-probs of the stored actions under the trained policy, with gradient.
        logp_old_T: the recorded ones.
        segment_T: int64 in [0, n), the trajectory of each decision, in any order.
        n: number of trajectories; one without decisions gets 0.
    """
    difference_T = logp_new_T.float() - logp_old_T.float()
    return difference_T.new_zeros(n).index_add(0, segment_T, difference_T)


@dataclass(frozen=True)
class ClipDiagnostics:
    """How far the policy has moved from the one that sampled; 0-dim fp32 tensors without gradient.

    Attributes:
        clip_fraction: share of ratios outside [1 - clip, 1 + clip], in [0, 1].
        ratio_mean: mean of pi_new / pi_old; near 1 while the old samples still represent the policy.
        ratio_max: largest ratio.
        approx_kl: mean of (ratio - 1) - ln ratio, an unbiased estimate of KL(old || new) in nats, >= 0.
    """

    clip_fraction: Tensor
    ratio_mean: Tensor
    ratio_max: Tensor
    approx_kl: Tensor


def clipped_objective(log_ratio_B: Tensor, advantage_B: Tensor, clip: float) -> tuple[Tensor, ClipDiagnostics]:
    """Eq. (7) with the release's clipping, to minimise: -mean min(rho A, clamp(rho, 1 - clip, 1 + clip) A).

    rho = exp(log_ratio) of a whole trajectory, or of one decision: any shape that both arguments share.

    Args:
        log_ratio_B: from ``trajectory_log_ratio``, with gradient; acts within +-MAX_LOG_RATIO.
        advantage_B: same shape, a constant.
        clip: in (0, 1); the release uses 0.2.
    """
    if log_ratio_B.shape != advantage_B.shape or log_ratio_B.numel() == 0:
        raise ConfigError(
            f"Got log-ratios of shape {tuple(log_ratio_B.shape)} and advantages of "
            f"{tuple(advantage_B.shape)}; pass one advantage per ratio, and at least one."
        )
    if not 0.0 < clip < 1.0:
        raise ConfigError(f"Got clip={clip}; it must lie in (0, 1) (the release uses 0.2).")
    log_ratio_B, advantage_B = (
        log_ratio_B.float().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO),
        advantage_B.detach().float(),
    )
    ratio_B = torch.exp(log_ratio_B)
    gain_B = torch.minimum(ratio_B * advantage_B, ratio_B.clamp(1.0 - clip, 1.0 + clip) * advantage_B)
    return -gain_B.mean(), clip_diagnostics(log_ratio_B, clip)


def clip_diagnostics(log_ratio_B: Tensor, clip: float) -> ClipDiagnostics:
    """What ``clipped_objective`` says of its ratios, for log-ratios of any shape put together from several calls."""
    log_ratio_B = log_ratio_B.detach().float().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_B = torch.exp(log_ratio_B)
    return ClipDiagnostics(
        clip_fraction=((ratio_B - 1.0).abs() > clip).float().mean(),
        ratio_mean=ratio_B.mean(),
        ratio_max=ratio_B.max(),
        approx_kl=(torch.expm1(log_ratio_B) - log_ratio_B).mean(),
    )


def _counts(steps_B: Tensor) -> Tensor:
    if not bool((steps_B >= 1).all()):
        raise ConfigError(f"Got step counts {steps_B.tolist()}; every finished image has made at least 1 step.")
    return wide(steps_B)
