"""The Beta distribution of a TPM's action, the ratio r = t_next / t in (0, 1).

Paper (arXiv 2412.01243): eq. (4) alpha = 1 + exp(a), beta = 1 + exp(b); eq. (5) r ~ Beta(alpha, beta); eq. (6)
t_next = r t. Parameters and results are fp32. lgamma and digamma run in float64 on the CPU. At alpha + beta = 6000 they
are near 5e4 and cancel, so that fp32 would lose two decimals of a log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from tpdm.core.device import wide
from tpdm.core.errors import ConfigError

RAW_LIMIT = 8.0
"""Limit of the raw outputs a and b. Then alpha and beta are in [1.0003, 2982], the mode in [1e-7, 1 - 1e-7]."""

ACTION_MIN = 1e-3
"""Smallest action, as in the release: t_next is at least a thousandth of t."""

ACTION_MAX = 1.0 - 1e-3
"""Largest action: every step lowers t."""


@dataclass(frozen=True)
class BetaParams:
    """One Beta distribution per image.

    Attributes:
        alpha_B: First parameter, fp32, > 1.
        beta_B: Second parameter, fp32, > 1. Both above 1 make the density unimodal.
    """

    alpha_B: Tensor
    beta_B: Tensor


def beta_params(a_B: Tensor, b_B: Tensor) -> BetaParams:
    """Convert raw network outputs to parameters: alpha = 1 + exp(a), beta = 1 + exp(b) (eq. 4).

    a and b are limited to [-RAW_LIMIT, RAW_LIMIT]. The gradient passes through the limit, so that a policy can return
    from outside. NaN and infinity become NaN, so that a broken network is visible.

    Args:
        a_B: First raw output of the network, any shape and floating dtype.
        b_B: Second raw output, same shape.

    Example:
        >>> beta_params(torch.zeros(1), torch.zeros(1))
        BetaParams(alpha_B=tensor([2.]), beta_B=tensor([2.]))
    """
    return BetaParams(1.0 + torch.exp(_limited(a_B)), 1.0 + torch.exp(_limited(b_B)))


def mode(params: BetaParams) -> Tensor:
    """Compute the deterministic action: (alpha - 1) / (alpha + beta - 2) = sigmoid(a - b).

    1 + exp(a) is rounded to fp32. This costs up to 2e-4 of the mode if a or b is near -8.

    Args:
        params: Parameters of shape (B,).

    Returns:
        The modes, fp32 in (0, 1).

    Example:
        >>> mode(beta_params(torch.tensor([2.5]), torch.tensor([1.0])))
        tensor([0.8176])
    """
    alpha_B, beta_B = params.alpha_B - 1.0, params.beta_B - 1.0
    return alpha_B / (alpha_B + beta_B)


def mean(params: BetaParams) -> Tensor:
    """Compute the mean alpha / (alpha + beta), fp32 in (0, 1).

    Example:
        >>> mean(BetaParams(torch.tensor([3.0]), torch.tensor([1.0])))
        tensor([0.7500])
    """
    return params.alpha_B / (params.alpha_B + params.beta_B)


def log_prob(params: BetaParams, action_B: Tensor) -> Tensor:
    """Compute the log-density of actions: (alpha - 1) ln r + (beta - 1) ln(1 - r) - ln B, one term of eq. (8).

    Args:
        params: Parameters of shape (B,).
        action_B: Actions r in (0, 1), as sampled and stored. A clamped action is scored at its clamped value with the
            plain density, as in the release. Policy ratios compare the same actions.

    Returns:
        Log-densities in nats, fp32.

    Example:
        >>> log_prob(BetaParams(torch.tensor([2.0]), torch.tensor([2.0])), torch.tensor([0.5]))
        tensor([0.4055])
    """
    alpha_B, beta_B = _wide(params)
    r_B = wide(action_B)
    logp_B = (alpha_B - 1.0) * torch.log(r_B) + (beta_B - 1.0) * torch.log1p(-r_B) - _log_beta(alpha_B, beta_B)
    return logp_B.to(params.alpha_B.device, torch.float32)


def entropy(params: BetaParams) -> Tensor:
    """Compute the differential entropy.

    ln B - (alpha - 1) psi(alpha) - (beta - 1) psi(beta) + (alpha + beta - 2) psi(alpha + beta).

    Args:
        params: Parameters of shape (B,).

    Returns:
        Entropies in nats, fp32, at most 0 (that of the uniform distribution).

    Example:
        >>> entropy(BetaParams(torch.tensor([2.0]), torch.tensor([2.0])))
        tensor([-0.1251])
    """
    alpha_B, beta_B = _wide(params)
    total_B = alpha_B + beta_B
    spread_B = (alpha_B - 1.0) * torch.digamma(alpha_B) + (beta_B - 1.0) * torch.digamma(beta_B)
    entropy_B = _log_beta(alpha_B, beta_B) - spread_B + (total_B - 2.0) * torch.digamma(total_B)
    return entropy_B.to(params.alpha_B.device, torch.float32)


def kl(p: BetaParams, q: BetaParams) -> Tensor:
    """Compute the divergence KL(p || q).

    ln B(q) - ln B(p) + (a_p - a_q) psi(a_p) + (b_p - b_q) psi(b_p) - (a_p - a_q + b_p - b_q) psi(a_p + b_p), with
    a = alpha and b = beta.

    Args:
        p: Parameters of shape (B,).
        q: Parameters of shape (B,).

    Returns:
        Divergences in nats, fp32, >= 0 up to floating-point rounding.

    Example:
        >>> p = BetaParams(torch.tensor([2.0]), torch.tensor([2.0]))
        >>> kl(p, p)
        tensor([0.])
    """
    (alpha_B, beta_B), (alpha_q_B, beta_q_B) = _wide(p), _wide(q)
    d_alpha_B, d_beta_B = alpha_B - alpha_q_B, beta_B - beta_q_B
    moved_B = d_alpha_B * torch.digamma(alpha_B) + d_beta_B * torch.digamma(beta_B)
    moved_B = moved_B - (d_alpha_B + d_beta_B) * torch.digamma(alpha_B + beta_B)
    kl_B = _log_beta(alpha_q_B, beta_q_B) - _log_beta(alpha_B, beta_B) + moved_B
    return kl_B.to(p.alpha_B.device, torch.float32)


def sample(params: BetaParams, seeds: Sequence[int], index_B: Tensor | Sequence[int]) -> Tensor:
    """Draw one action per image (eq. 5), without gradient.

    The draw depends only on the image's seed and the index of the decision. It is the same in every batch, process and
    device.

    Args:
        params: Parameters of shape (B,).
        seeds: One integer per image, >= 0.
        index_B: Number of decisions that each image has made before, >= 0.

    Returns:
        Actions, fp32 in [ACTION_MIN, ACTION_MAX].

    Raises:
        ConfigError: Lengths differ, or a number is negative.

    Example:
        >>> params = BetaParams(torch.full((2,), 9.0), torch.full((2,), 3.0))
        >>> both, second = sample(params, [0, 1], [4, 4]), sample(params, [7, 1], [0, 4])
        >>> bool(both[1] == second[1])
        True
    """
    indices = index_B.tolist() if isinstance(index_B, Tensor) else list(index_B)
    alphas, betas = params.alpha_B.detach().tolist(), params.beta_B.detach().tolist()
    if not len(seeds) == len(indices) == len(alphas):
        raise ConfigError(
            f"There are {len(seeds)} seeds and {len(indices)} decision indices for {len(alphas)} images. Pass one of "
            "each per image."
        )
    if any(number < 0 for number in (*seeds, *indices)):
        raise ConfigError(
            f"The seeds are {list(seeds)} and the decision indices {indices}. Both must be 0 or more. Pass the seed "
            "modulo 2**63."
        )
    draws = [
        numpy.random.default_rng([seed, index]).beta(alpha, beta)
        for seed, index, alpha, beta in zip(seeds, indices, alphas, betas, strict=True)
    ]
    r_B = torch.tensor(draws, dtype=torch.float32, device=params.alpha_B.device)
    return r_B.clamp(ACTION_MIN, ACTION_MAX)


def _limited(raw_B: Tensor) -> Tensor:
    raw_B = raw_B.float()
    return raw_B.detach().clamp(-RAW_LIMIT, RAW_LIMIT) + (raw_B - raw_B.detach())


def _wide(params: BetaParams) -> tuple[Tensor, Tensor]:
    return wide(params.alpha_B), wide(params.beta_B)


def _log_beta(alpha_B: Tensor, beta_B: Tensor) -> Tensor:
    return torch.lgamma(alpha_B) + torch.lgamma(beta_B) - torch.lgamma(alpha_B + beta_B)
