"""Images of an update or a validation: made by all processes, each its own, and scored; everyone knows all scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tpdm.core.errors import TrainingError
from tpdm.core.types import Observation, Trajectory
from tpdm.rewards.base import Reward, checked_scores
from tpdm.rewards.composite import RewardOutput, judge
from tpdm.sampling.base import SampleBatch, Sampler, SampleRequest
from tpdm.training.distributed.context import DistributedContext


@dataclass(frozen=True)
class RolloutBuffer:
    """All decisions of n trajectories, flat; what the update passes read.

    Attributes:
        observation: of T decisions.
        action_T: as sampled, fp32.
        logp_T: as scored then.
        segment_T: the trajectory of each, int64, ascending.
        trajectories: n.
    """

    observation: Observation
    action_T: Tensor
    logp_T: Tensor
    segment_T: Tensor
    trajectories: int

    def part(self, first: int, last: int) -> RolloutBuffer:
        """Trajectories first <= n < last alone, renumbered from 0; views, nothing is copied."""
        edges = torch.tensor([first, last], dtype=torch.int64, device="cpu")
        begin, end = torch.searchsorted(self.segment_T, edges).tolist()
        rows = slice(begin, end)
        return RolloutBuffer(
            self.observation.rows(rows),
            self.action_T[rows],
            self.logp_T[rows],
            self.segment_T[rows] - first,
            last - first,
        )


def make_rollout_buffer(trajectories: Sequence[Trajectory]) -> RolloutBuffer:
    """Flattens trajectories; decisions that the cap overruled are left out.

    Raises:
        TrainingError: the cap overruled all of them.
    """
    steps = [(n, s) for n, trajectory in enumerate(trajectories) for s in trajectory.steps if s.counts]
    if not steps:
        raise TrainingError(
            f"got no decision that counts in {len(trajectories)} trajectories, expected at least one that the "
            "cap did not overrule; raise sampling.max_steps"
        )
    seen = [s.observation for _, s in steps]
    maps = [o.map_BCHW for o in seen if o.map_BCHW is not None]
    tembs = [o.temb_BE for o in seen if o.temb_BE is not None]
    gammas = [o.gamma_B for o in seen if o.gamma_B is not None]
    changes = [o.change_B for o in seen if o.change_B is not None]
    observation = Observation(
        map_BCHW=torch.cat(maps) if maps else None,
        temb_BE=torch.cat(tembs) if tembs else None,
        t_B=torch.cat([o.t_B for o in seen]),
        index_B=torch.cat([o.index_B for o in seen]),
        row_B=torch.cat([o.row_B for o in seen]),
        gamma_B=torch.cat(gammas) if gammas else None,
        change_B=torch.cat(changes) if changes else None,
    )
    return RolloutBuffer(
        observation,
        torch.tensor([s.action for _, s in steps], dtype=torch.float32, device="cpu"),
        torch.tensor([s.logp for _, s in steps], dtype=torch.float32, device="cpu"),
        torch.tensor([n for n, _ in steps], dtype=torch.int64, device="cpu"),
        len(trajectories),
    )


@dataclass(frozen=True)
class ScoredRollout:
    """What came of B images.

    Attributes:
        scored: of all B, in the order they were asked for, whoever made them.
        steps: network evaluations of all B.
        mine: the images of this process, among the B.
        generated: those images; None where the process had none to make.
        judged: scores of all B by judges that training does not see.
        score_seconds: wall-clock time that the reward and the judges took of this process.
    """

    scored: RewardOutput
    steps: list[int]
    mine: slice
    generated: SampleBatch | None
    judged: Mapping[str, Tensor] = field(default_factory=dict)
    score_seconds: float = 0.0

    def replay(self) -> RolloutBuffer | None:
        """This process's decisions; None where none of them counts."""
        trajectories = (self.generated.trajectories if self.generated else None) or []
        counts = any(step.counts for trajectory in trajectories for step in trajectory.steps)
        return make_rollout_buffer(trajectories) if counts else None


def collect_rollout(
    team: DistributedContext,
    sampler: Sampler,
    reward: Reward,
    request: SampleRequest,
    judges: Mapping[str, Reward] = MappingProxyType({}),
) -> ScoredRollout:
    """Makes and scores this process's share of B images, and shares the scores with all processes.

    The share is a range of consecutive images. If the number of processes divides the number of prompts, the share
    contains whole groups. Otherwise a group may span two processes, which changes no result: every process computes
    advantages from all scores.

    Args:
        team: The processes of the run.
        sampler: Makes the images.
        reward: Scores the images.
        request: All B images.
        judges: Rewards by name that score the images too.
    """
    mine = team.part(len(request))
    generated, scored, judged, seconds = None, RewardOutput(_joined([]), {}), {}, 0.0
    if share := request.rows(mine):
        generated = sampler(share)
        images = generated.images_B3HW
        began = time.monotonic()
        scored = judge(reward, images, share.prompts, share.seeds)
        judged = {name: checked_scores(other, images, share.prompts, share.seeds) for name, other in judges.items()}
        seconds = time.monotonic() - began
    said = {
        "score": scored.score_B.tolist(),
        "parts": {key: part_B.tolist() for key, part_B in scored.parts.items()},
        "judged": {name: score_B.tolist() for name, score_B in judged.items()},
        "steps": generated.steps if generated else [],
    }
    heard = team.all_gather_object(said)
    # The last process has images where any has.
    parts, others = (
        {key: _joined([one[kind].get(key, []) for one in heard]) for key in heard[-1][kind]}
        for kind in ("parts", "judged")
    )
    steps = [n for one in heard for n in one["steps"]]
    scored = RewardOutput(_joined([one["score"] for one in heard]), parts)
    return ScoredRollout(scored, steps, mine, generated, others, seconds)


def _joined(scores: Sequence[list[Any]]) -> Tensor:
    return torch.tensor([score for part in scores for score in part], dtype=torch.float32, device="cpu")
