"""Images of an update or a validation, made and scored by all processes, and the buffer of their decisions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tpdm.core.errors import TrainingError
from tpdm.core.types import Observation, Trajectory
from tpdm.rewards.base import Reward, checked_scores
from tpdm.rewards.composite import RewardOutput, compute_rewards
from tpdm.sampling.base import SampleBatch, Sampler, SampleRequest
from tpdm.training.distributed.context import DistributedContext


@dataclass(frozen=True)
class RolloutBuffer:
    """The T decisions of n trajectories, ordered by trajectory, then by step.

    The observations stay in the batches that the steppers recorded, so that an update holds them once. ``observation``
    copies the rows of this buffer. An update reads it for one micro-batch at a time (see ``part``).

    Attributes:
        batches: Observations as recorded, one per step of a pipeline call.
        batch_T: Position of each decision's observation in ``batches``, int64.
        row_T: Row of each decision's observation in its batch, int64.
        action_T: Sampled actions, fp32.
        logp_T: Log-probabilities of the actions when they were sampled, fp32.
        segment_T: Trajectory of each decision, int64, ascending in [0, n).
        trajectories: n. A trajectory may have no decision.

    Example:
        >>> from tpdm.core.types import Step
        >>> t_B, index_B, row_B = torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.arange(2)
        >>> seen = Observation(None, None, t_B, index_B, row_B)  # of two images at one step
        >>> steps = [Step(seen, row, action=0.5, logp=0.0, t=1.0, t_next=0.0, counts=True) for row in (0, 1)]
        >>> buffer = make_rollout_buffer([Trajectory((step,)) for step in steps])
        >>> buffer.part(1, 2).observation.row_B
        tensor([1])
    """

    batches: Sequence[Observation]
    batch_T: Tensor
    row_T: Tensor
    action_T: Tensor
    logp_T: Tensor
    segment_T: Tensor
    trajectories: int

    def part(self, first: int, last: int) -> RolloutBuffer:
        """The buffer of the trajectories in [first, last), renumbered from 0. Copies nothing."""
        edges = torch.tensor([first, last], dtype=torch.int64, device="cpu")
        begin, end = torch.searchsorted(self.segment_T, edges).tolist()
        rows = slice(begin, end)
        return RolloutBuffer(
            self.batches,
            self.batch_T[rows],
            self.row_T[rows],
            self.action_T[rows],
            self.logp_T[rows],
            self.segment_T[rows] - first,
            last - first,
        )

    @property
    def observation(self) -> Observation:
        """A copy of the T observations in the order of the decisions."""
        places = list(zip(self.batch_T.tolist(), self.row_T.tolist(), strict=True))

        def gather(name: str) -> Any:
            columns = [getattr(batch, name) for batch in self.batches]
            if any(columns[b] is None for b, _ in places):  # a field of every step, or of none
                return None
            return torch.cat([columns[b][row : row + 1] for b, row in places])

        return Observation(**{field.name: gather(field.name) for field in fields(Observation)})


def make_rollout_buffer(trajectories: Sequence[Trajectory]) -> RolloutBuffer:
    """Puts recorded trajectories in order, without the decisions that the cap overruled.

    Raises:
        TrainingError: The cap overruled all decisions.
    """
    steps = [(n, s) for n, trajectory in enumerate(trajectories) for s in trajectory.steps if s.counts]
    if not steps:
        raise TrainingError(no_decision(len(trajectories)))
    batches = {id(s.batch): s.batch for _, s in steps}
    position = {key: b for b, key in enumerate(batches)}
    places = [(position[id(s.batch)], s.row, n) for n, s in steps]
    batch_T, row_T, segment_T = torch.tensor(places, dtype=torch.int64, device="cpu").T.contiguous()
    decisions = [(s.action, s.logp) for _, s in steps]
    action_T, logp_T = torch.tensor(decisions, dtype=torch.float32, device="cpu").T.contiguous()
    return RolloutBuffer(
        tuple(batches.values()), batch_T, row_T, action_T, logp_T, segment_T, trajectories=len(trajectories)
    )


def no_decision(trajectories: int) -> str:
    """The message of a rollout without a decision that counts."""
    return (
        f"The cap overruled every decision of {trajectories} trajectories. At least one decision must count. Raise "
        "sampling.max_steps."
    )


@dataclass(frozen=True)
class ScoredRollout:
    """The scores of B images, and the images that this process made.

    Attributes:
        scored: Scores of all B images, in the order of the request.
        steps: Denoiser evaluations of all B images.
        share: Rows of the images of this process.
        generated: Images of this process. None if its share is empty.
        judged: Scores of all B images by each judge.
        score_seconds: Wall-clock time of the reward and the judges in this process, in seconds.
    """

    scored: RewardOutput
    steps: list[int]
    share: slice
    generated: SampleBatch | None
    judged: Mapping[str, Tensor] = field(default_factory=dict)
    score_seconds: float = 0.0

    def buffer(self) -> RolloutBuffer | None:
        """The recorded decisions of this process. None if the cap overruled all of them."""
        trajectories = (self.generated.trajectories if self.generated else None) or []
        counts = any(step.counts for trajectory in trajectories for step in trajectory.steps)
        return make_rollout_buffer(trajectories) if counts else None


def collect_rollout(
    context: DistributedContext,
    sampler: Sampler,
    reward: Reward,
    request: SampleRequest,
    judges: Mapping[str, Reward] = MappingProxyType({}),
) -> ScoredRollout:
    """Makes and scores this process's share of B images, and gathers the scores of all processes.

    The share is a range of consecutive images. If the number of processes divides the number of prompts, the share
    contains whole groups. Otherwise a group may span two processes, which changes no result: every process computes
    advantages from all scores.

    Args:
        context: The processes of the run.
        sampler: Makes the images.
        reward: Scores the images.
        request: All B images.
        judges: Rewards by name that score the images in addition. Default: none.
    """
    share = context.part(len(request))
    generated, scored, judged, seconds = None, RewardOutput(_joined([]), {}), {}, 0.0
    if rows := request.rows(share):
        generated = sampler(rows)
        images = generated.images_B3HW
        began = time.monotonic()
        scored = compute_rewards(reward, images, rows.prompts, rows.seeds)
        judged = {name: checked_scores(other, images, rows.prompts, rows.seeds) for name, other in judges.items()}
        seconds = time.monotonic() - began
    gathered = context.all_gather_object(
        {
            "score": scored.score_B.tolist(),
            "parts": {key: part_B.tolist() for key, part_B in scored.parts.items()},
            "judged": {name: score_B.tolist() for name, score_B in judged.items()},
            "steps": generated.steps if generated else [],
        }
    )
    # If any process has images, the last one does.
    parts, judged_B = (
        {key: _joined([process[kind].get(key, []) for process in gathered]) for key in gathered[-1][kind]}
        for kind in ("parts", "judged")
    )
    scored = RewardOutput(_joined([process["score"] for process in gathered]), parts)
    steps = [n for process in gathered for n in process["steps"]]
    return ScoredRollout(scored, steps, share, generated, judged_B, seconds)


def _joined(scores: Sequence[list[Any]]) -> Tensor:
    return torch.tensor([score for part in scores for score in part], dtype=torch.float32, device="cpu")
