"""The training objective: rewards with a penalty on steps, leave-one-out advantages, and the clipped ratio.

Equations are those of arXiv 2412.01243. Axes: B trajectories, P prompts, K trajectories per prompt, T decisions of all
trajectories. Results are fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tpdm.config.recipe import Recipe, RewardConfig
from tpdm.core.device import wide
from tpdm.core.errors import ConfigError
from tpdm.policies.gamma import gamma_position

MAX_LOG_RATIO = 20.0
"""Bound on |log-ratio|, so that exp stays finite. A trajectory beyond it has no gradient."""

MIN_STD = 1e-6
"""Smallest divisor of normalized advantages. With it, equal rewards give zeros instead of amplified rounding errors."""

GROUP_FLOOR = 0.05
"""Smallest divisor of one prompt, as a share of the divisor of the batch."""

GAMMA_WIDTH = 0.3
"""Standard deviation of the weights over the gamma position, which has a range of length 2."""

Normalize = Literal["none", "batch", "group", "gamma"]


def advantages(
    score_B: Tensor, steps: Sequence[int], gammas: Sequence[float] | None, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Objectives and advantages of the images of one update, in the form of the recipe.

    Args:
        score_B: Score of each image, with the samples of a prompt next to each other.
        steps: Denoiser evaluations of each image, >= 1.
        gammas: Gamma of each image, the same for all samples of a prompt. None takes ``reward.gamma``.
        recipe: Recipe of the run.

    Returns:
        The objectives (P, K) and the advantages (B,).
    """
    K = recipe.rl.samples_per_prompt
    steps_B = torch.tensor(steps, dtype=torch.int64, device="cpu")
    objective_PK = apply_step_penalty(score_B, steps_B, recipe.reward, gammas).view(-1, K)
    position_P = None
    if recipe.reward.gamma_range is not None and gammas is not None:
        gamma_P = torch.tensor(gammas[::K], dtype=torch.float32, device="cpu")
        position_P = gamma_position(gamma_P, *recipe.reward.gamma_range)
    return objective_PK, rloo_advantages(objective_PK, recipe.rl.normalize_advantages, position_P).flatten()


def apply_step_penalty(
    score_B: Tensor, steps_B: Tensor, config: RewardConfig, gammas: Sequence[float] | None = None
) -> Tensor:
    """The objective of each image: its score with a penalty on its steps, in the form of the recipe.

    Args:
        score_B: Score of each image, in the unit of the reward.
        steps_B: Denoiser evaluations of each image, int64, >= 1.
        config: Reward section of the recipe. ``form`` selects ``discounted_reward`` or ``additive_reward``.
        gammas: Gamma of each image. None takes ``config.gamma``.

    Example:
        >>> config = RewardConfig(form="additive", step_cost=0.01)
        >>> apply_step_penalty(torch.tensor([0.9, 0.9]), torch.tensor([10, 20]), config)
        tensor([0.8000, 0.7000])
    """
    if config.form == "additive":
        return additive_reward(score_B, steps_B, config.step_cost)
    gamma = config.gamma if gammas is None else torch.tensor(gammas, dtype=torch.float64, device="cpu")
    return discounted_reward(score_B, steps_B, gamma, config.offset)


def discounted_reward(score_B: Tensor, steps_B: Tensor, gamma: float | Tensor, offset: float = 0.0) -> Tensor:
    """Eq. (9): R = (score + offset) (1 - gamma^N) / (N (1 - gamma)). With gamma = 1, R = score + offset.

    The factor is 1 at N = 1 and falls with N. Steps therefore reduce R only while score + offset > 0. Below 0 the same
    formula rewards steps. For this reason the release adds an offset of 3.10, three standard deviations of ImageReward.

    Args:
        score_B: Score of each image, in the unit of the reward.
        steps_B: N, denoiser evaluations of each image, >= 1.
        gamma: Discount in (0, 1], one number or one per trajectory.
        offset: Number added to the score first. Default: 0.

    Raises:
        ConfigError: gamma is outside (0, 1], or an image has no step.

    Example:
        >>> discounted_reward(torch.tensor([1.0, 1.0]), torch.tensor([1, 10]), gamma=0.9)
        tensor([1.0000, 0.6513])
    """
    gamma_B = torch.as_tensor(gamma, dtype=torch.float64, device="cpu")
    if not bool(((gamma_B > 0) & (gamma_B <= 1)).all()):
        raise ConfigError(f"gamma is {gamma}. It must be in (0, 1]. The paper uses 0.85 to 0.97.")
    n_B = _counts(steps_B)
    rest_B = torch.where(gamma_B < 1.0, 1.0 - gamma_B, torch.ones_like(gamma_B))
    factor_B = torch.where(gamma_B < 1.0, -torch.expm1(n_B * torch.log(gamma_B)) / (n_B * rest_B), 1.0)
    return ((wide(score_B) + offset) * factor_B).to(score_B.device, torch.float32)


def additive_reward(score_B: Tensor, steps_B: Tensor, cost: float | Tensor) -> Tensor:
    """R = score - cost N. Every step costs the same, whatever the sign of the score. [ours]

    Args:
        score_B: Score of each image, in the unit of the reward.
        steps_B: N, denoiser evaluations of each image, >= 1.
        cost: Penalty of one step in the unit of the score, >= 0, one number or one per trajectory.

    Raises:
        ConfigError: cost is negative, or an image has no step.

    Example:
        >>> additive_reward(torch.tensor([1.0, 1.0]), torch.tensor([1, 10]), cost=0.05)
        tensor([0.9500, 0.5000])
    """
    cost_B = torch.as_tensor(cost, dtype=torch.float64, device="cpu")
    if not bool((cost_B >= 0).all()):
        raise ConfigError(f"cost is {cost}. It must be >= 0. A negative cost would reward steps.")
    return (wide(score_B) - cost_B * _counts(steps_B)).to(score_B.device, torch.float32)


def rloo_advantages(reward_PK: Tensor, normalize: Normalize = "none", position_P: Tensor | None = None) -> Tensor:
    """Eq. (7), leave-one-out baseline: A_k = R_k - mean of the other K - 1 rewards of the same prompt.

    Args:
        reward_PK: Rewards, one row per prompt, K >= 2.
        normalize: Divisor of the advantages, always a population standard deviation. Default: "none".

            * "none": No divisor.
            * "batch": The one of all P K advantages.
            * "group": The one of the prompt, at least ``GROUP_FLOOR`` of the one of the batch. All prompts then have
              about the same weight, even if the images of some differ by little more than the penalty of a step.
            * "gamma": The one of prompts with a similar gamma. At a low gamma images differ more. One divisor for all
              would give the other end of the range little weight.
        position_P: Position of each prompt's gamma in [-1, 1] (see ``tpdm.policies.gamma.gamma_position``). Required
            for "gamma", which otherwise is "batch".

    Returns:
        Advantages (P, K). Every row sums to 0.

    Raises:
        ConfigError: ``reward_PK`` has another number of axes than 2, or K < 2.

    Example:
        >>> rloo_advantages(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.5000,  0.0000,  1.5000]])
    """
    if reward_PK.ndim != 2 or reward_PK.shape[1] < 2:
        raise ConfigError(
            f"reward_PK has the shape {tuple(reward_PK.shape)}. It must be (prompts, samples) with at least 2 samples "
            "per prompt. Set rl.samples_per_prompt to 2 or more."
        )
    wide_PK = wide(reward_PK)
    advantage_PK = wide_PK - (wide_PK.sum(1, keepdim=True) - wide_PK) / (reward_PK.shape[1] - 1)
    if normalize == "gamma" and position_P is not None:
        advantage_PK = advantage_PK / _std_nearby(advantage_PK, position_P)
    elif normalize != "none":
        std = advantage_PK.std(correction=0).clamp_min(MIN_STD)
        if normalize == "group":
            std = advantage_PK.std(dim=1, correction=0, keepdim=True).clamp_min(GROUP_FLOOR * float(std))
        advantage_PK = advantage_PK / std
    return advantage_PK.to(reward_PK.device, torch.float32)


def _std_nearby(advantage_PK: Tensor, position_P: Tensor) -> Tensor:
    """Standard deviation (P, 1) around every prompt, with Gaussian weights over the distance of gamma positions."""
    distance_PP = (wide(position_P)[:, None] - wide(position_P)) / GAMMA_WIDTH
    weight_PP = torch.exp(-distance_PP.square() / 2)
    variance_P = advantage_PK.square().mean(1)
    return ((weight_PP @ variance_P) / weight_PP.sum(1)).sqrt().clamp_min(MIN_STD)[:, None]


def trajectory_log_ratio(logp_new_T: Tensor, logp_old_T: Tensor, segment_T: Tensor, n: int) -> Tensor:
    """Eq. (8): ln(pi_new(y|s) / pi_old(y|s)) of n trajectories, as sums of differences of log-probabilities.

    The function sums differences instead of log-probabilities, so that equal policies give exactly 0.

    Args:
        logp_new_T: Log-probabilities of the recorded actions under the trained policy, with gradient.
        logp_old_T: The recorded log-probabilities.
        segment_T: Trajectory of each decision, int64 in [0, n), in any order.
        n: Number of trajectories. A trajectory without decisions gets 0.

    Returns:
        Log-ratios (n,), fp32.

    Example:
        >>> new, old = torch.tensor([-0.5, -1.0, -2.0]), torch.tensor([-1.0, -1.0, -1.0])
        >>> trajectory_log_ratio(new, old, torch.tensor([0, 0, 1]), n=3)
        tensor([ 0.5000, -1.0000,  0.0000])
    """
    difference_T = logp_new_T.float() - logp_old_T.float()
    return difference_T.new_zeros(n).index_add(0, segment_T, difference_T)


@dataclass(frozen=True)
class ClipDiagnostics:
    """How far the policy has moved from the policy that sampled. 0-dim fp32 tensors without gradient.

    Attributes:
        clip_fraction: Share of ratios outside [1 - clip, 1 + clip], in [0, 1].
        ratio_mean: Mean of pi_new / pi_old. It is near 1 while the old samples represent the policy.
        ratio_max: Largest ratio.
        approx_kl: Mean of (ratio - 1) - ln ratio, an unbiased estimate of KL(old || new) in nats, >= 0.
    """

    clip_fraction: Tensor
    ratio_mean: Tensor
    ratio_max: Tensor
    approx_kl: Tensor


def clipped_objective(log_ratio_B: Tensor, advantage_B: Tensor, clip: float) -> tuple[Tensor, ClipDiagnostics]:
    """Eq. (7) with the clipping of the release, as a loss: -mean min(rho A, clamp(rho, 1 - clip, 1 + clip) A).

    rho = exp(log_ratio) of a trajectory or of a decision. Both tensors may have any shape that they share.

    Args:
        log_ratio_B: Log-ratios from ``trajectory_log_ratio``, with gradient, clamped to +-MAX_LOG_RATIO.
        advantage_B: Advantages, same shape, treated as constants.
        clip: Clip range in (0, 1). The release uses 0.2.

    Returns:
        The loss (0-dim) and the diagnostics of its ratios.

    Raises:
        ConfigError: The shapes differ, the tensors are empty, or clip is outside (0, 1).

    Example:
        >>> loss, seen = clipped_objective(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 1.0]), clip=0.2)
        >>> round(float(loss), 4), float(seen.clip_fraction)
        (-1.1, 0.5)
    """
    if log_ratio_B.shape != advantage_B.shape or log_ratio_B.numel() == 0:
        raise ConfigError(
            f"log_ratio_B has the shape {tuple(log_ratio_B.shape)} and advantage_B {tuple(advantage_B.shape)}. They "
            "must be the same. Pass one advantage per ratio, and at least one."
        )
    if not 0.0 < clip < 1.0:
        raise ConfigError(f"clip is {clip}. It must be in (0, 1). The release uses 0.2.")
    log_ratio_B, advantage_B = (
        log_ratio_B.float().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO),
        advantage_B.detach().float(),
    )
    ratio_B = torch.exp(log_ratio_B)
    gain_B = torch.minimum(ratio_B * advantage_B, ratio_B.clamp(1.0 - clip, 1.0 + clip) * advantage_B)
    return -gain_B.mean(), clip_diagnostics(log_ratio_B, clip)


def clip_diagnostics(log_ratio_B: Tensor, clip: float) -> ClipDiagnostics:
    """Diagnostics of log-ratios of any shape, for example those of several micro-batches.

    Args:
        log_ratio_B: Log-ratios, clamped to +-MAX_LOG_RATIO.
        clip: Clip range in (0, 1).
    """
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
        raise ConfigError(f"steps_B is {steps_B.tolist()}. Every finished image has at least 1 step.")
    return wide(steps_B)
