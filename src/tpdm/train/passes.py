"""One pass: the gradient of the clipped policy-ratio objective over recorded decisions, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tpdm.core import beta
from tpdm.core.objective import clipped_objective, trajectory_log_ratio
from tpdm.devices import without_autocast
from tpdm.policy import TimePredictor
from tpdm.portion import Portion
from tpdm.recipe import RlConfig
from tpdm.rollout import Replay
from tpdm.train.team import Team
from tpdm.types import TrainingError


def find_culprit(
    policy: TimePredictor,
    whole: Amount,
    replay: Replay | None,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictor | None,
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
class Amount:
    """What the means of the loss are over: all processes' trajectories, and their decisions that count."""

    trajectories: int
    decisions: int


def count_amount(team: Team, replay: Replay | None, advantage_B: Tensor) -> Amount:
    """Counts the rollout of all processes.

    Raises:
        TrainingError: no process has a decision that counts.
    """
    mine = [len(advantage_B), 0 if replay is None else len(replay.action_T)]
    trajectories, decisions = (sum(n) for n in zip(*team.gather_json(mine), strict=True))
    if not decisions:
        raise TrainingError(
            f"got no decision that counts in {trajectories} trajectories, expected at least one that the "
            "cap did not overrule; raise sampling.max_steps"
        )
    return Amount(trajectories, decisions)


@dataclass(frozen=True)
class Measured:
    """What a pass measured of each ratio (X: trajectories or decisions, as ``rl.ratio`` says) and decision.

    Kept one by one, so that the statistics are taken once, over all of them in their order.
    """

    log_ratio_X: Tensor
    entropy_T: Tensor
    kl_T: Tensor


def make_gradient(
    policy: TimePredictor,
    whole: Amount,
    replay: Replay | None,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictor | None,
    portion: Portion,
) -> Measured:
    """Makes the gradient of this process's decisions, in parts that fit into memory."""
    if replay is None:  # its trajectories, if any, count with a ratio of 1
        ratios = len(advantage_B) if rl.ratio == "trajectory" else 0
        return Measured(*(torch.zeros(n, dtype=torch.float32, device="cpu") for n in (ratios, 0, 0)))
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


def _joined(parts: Sequence[Measured]) -> Measured:
    return Measured(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Measured)))


def everywhere(team: Team, mine: Measured) -> Measured:
    """What all processes measured, in their order."""
    return Measured(*(team.gather(getattr(mine, f.name)) for f in fields(Measured)))


def _micro_batches(replay: Replay, decisions: int) -> Iterator[tuple[int, int]]:
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
    policy: TimePredictor,
    whole: Amount,
    part: Replay,
    advantage_B: Tensor,
    rl: RlConfig,
    reference: TimePredictor | None,
) -> Measured:
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
    return Measured(log_ratio_X.detach(), entropy_T.detach(), kl_T.detach())
