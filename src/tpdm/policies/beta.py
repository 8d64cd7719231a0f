"""The Beta policy: two network outputs become a distribution of the ratio r = t_next / t, in (0, 1).

Paper: eq. (4) alpha = 1 + exp(a), beta = 1 + exp(b); eq. (5) r ~ Beta(alpha, beta); eq. (6) t_next = r t.
Parameters and results are fp32, without units. lgamma and digamma run in float64 on the CPU inside: at
alpha + beta = 6000 they are near 5e4 and cancel, so that fp32 would lose two decimals of a log-probability.
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
"""Raw outputs a, b act within [-8, 8]: alpha and beta lie in [1.0003, 2982], the mode in [1e-7, 1 - 1e-7]."""

ACTION_MIN = 1e-3
"""Smallest action (the release's clamp): a step never leaps to less than a thousandth of its time."""

ACTION_MAX = 1.0 - 1e-3
"""Largest action: a step never stands still."""


@dataclass(frozen=True)
class BetaParams:
    """One Beta distribution per image.

    Attributes:
        alpha_B: fp32, > 1.
        beta_B: fp32, > 1; both above 1 make the density unimodal.
    """

    alpha_B: Tensor
    beta_B: Tensor


def beta_params(a_B: Tensor, b_B: Tensor) -> BetaParams:
    """Eq. (4): alpha = 1 + exp(a), beta = 1 + exp(b).

    a and b are limited to [-RAW_LIMIT, RAW_LIMIT]; the gradient passes through the limit, or a policy that
    once got out could never return. NaN and inf become NaN, so that a broken network shows.

    Args:
        a_B: raw output of the network, any shape and floating dtype.
        b_B: as a_B.
    """
    return BetaParams(1.0 + torch.exp(_limited(a_B)), 1.0 + torch.exp(_limited(b_B)))


def mode(params: BetaParams) -> Tensor:
    """The deterministic action: (alpha - 1) / (alpha + beta - 2) = sigmoid(a - b), fp32 in (0, 1).

    1 + exp(a) is rounded to fp32, which costs up to 2e-4 of the mode where a or b is near -8.
    """
    alpha_B, beta_B = params.alpha_B - 1.0, params.beta_B - 1.0
    return alpha_B / (alpha_B + beta_B)


def mean(params: BetaParams) -> Tensor:
    """E[r] = alpha / (alpha + beta), fp32 in (0, 1)."""
    return params.alpha_B / (params.alpha_B + params.beta_B)


def log_prob(params: BetaParams, action_B: Tensor) -> Tensor:
    """Log-density (nats) of the actions, one term of eq. (8): (alpha - 1) ln r + (beta - 1) ln(1 - r) - ln B.

    Args:
        params: of shape (B,).
        action_B: r in (0, 1), as sampled and stored. An action that was clamped is scored at its clamped
            value with the plain density, as in the release; policy ratios compare equal actions.
    """
    alpha_B, beta_B = _wide(params)
    r_B = wide(action_B)
    logp_B = (alpha_B - 1.0) * torch.log(r_B) + (beta_B - 1.0) * torch.log1p(-r_B) - _log_beta(alpha_B, beta_B)
    return logp_B.to(params.alpha_B.device, torch.float32)


def entropy(params: BetaParams) -> Tensor:
    """Differential entropy in nats, at most 0.

    ln B - (alpha - 1) psi(alpha) - (beta - 1) psi(beta) + (alpha + beta - 2) psi(alpha + beta).
    """
    alpha_B, beta_B = _wide(params)
    total_B = alpha_B + beta_B
    spread_B = (alpha_B - 1.0) * torch.digamma(alpha_B) + (beta_B - 1.0) * torch.digamma(beta_B)
    entropy_B = _log_beta(alpha_B, beta_B) - spread_B + (total_B - 2.0) * torch.digamma(total_B)
    return entropy_B.to(params.alpha_B.device, torch.float32)


def kl(p: BetaParams, q: BetaParams) -> Tensor:
    """KL(p || q) in nats, >= 0 up to rounding.

    ln B(q) - ln B(p) + (a_p - a_q) psi(a_p) + (b_p - b_q) psi(b_p) - (a_p - a_q + b_p - b_q) psi(a_p + b_p),
    with a = alpha and b = beta.
    """
    (alpha_B, beta_B), (alpha_q_B, beta_q_B) = _wide(p), _wide(q)
    d_alpha_B, d_beta_B = alpha_B - alpha_q_B, beta_B - beta_q_B
    moved_B = d_alpha_B * torch.digamma(alpha_B) + d_beta_B * torch.digamma(beta_B)
    moved_B = moved_B - (d_alpha_B + d_beta_B) * torch.digamma(alpha_B + beta_B)
    kl_B = _log_beta(alpha_q_B, beta_q_B) - _log_beta(alpha_B, beta_B) + moved_B
    return kl_B.to(p.alpha_B.device, torch.float32)


def sample(params: BetaParams, seeds: Sequence[int], index_B: Tensor | Sequence[int]) -> Tensor:
    """Eq. (5): one draw per image, fp32 in [ACTION_MIN, ACTION_MAX], without gradient.

    The randomness belongs to the image's seed and the decision's index: the same pair draws from the same
    stream in every batch, process and device.

    Args:
        params: of shape (B,).
        seeds: B integers >= 0.
        index_B: B integers >= 0, the number of decisions the image has made before.
    """
    indices = index_B.tolist() if isinstance(index_B, Tensor) else list(index_B)
    alphas, betas = params.alpha_B.detach().tolist(), params.beta_B.detach().tolist()
    if not len(seeds) == len(indices) == len(alphas):
        raise ConfigError(
            f"sample() got {len(seeds)} seeds and {len(indices)} decision indices for {len(alphas)} images; "
            "pass one of each per image."
        )
    if any(number < 0 for number in (*seeds, *indices)):
        raise ConfigError(
            f"sample() got seeds {list(seeds)} and decision indices {indices}; both must be 0 or more, "
            "so pass the seed modulo 2**63."
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
