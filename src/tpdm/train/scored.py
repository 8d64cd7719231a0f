"""Images of an update or a validation: made by all processes, each its own, and scored; everyone knows all scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tpdm.prompts import Prompt
from tpdm.rewards.base import Reward, checked_scores
from tpdm.rewards.composite import Scored, judge
from tpdm.rollout import Generated, Replay, make_replay
from tpdm.train.team import Team

# (prompts, seeds, decision seeds, whether to record) -> images
MakeImages = Callable[[Sequence[Prompt], Sequence[int], Sequence[int] | None, bool], Generated]
# ... and the gamma of each image, where there is a dial
MakeDialled = Callable[[Sequence[Prompt], Sequence[int], Sequence[int] | None, bool, Sequence[float] | None], Generated]


@dataclass(frozen=True)
class Rollout:
    """What came of B images.

    Attributes:
        scored: of all B, in the order they were asked for, whoever made them.
        steps: network evaluations of all B.
        mine: the images of this process, among the B.
        generated: those images; None where the process had none to make.
        judged: scores of all B by judges that training does not see.
        score_seconds: wall-clock time that the reward and the judges took of this process.
    """

    scored: Scored
    steps: list[int]
    mine: slice
    generated: Generated | None
    judged: Mapping[str, Tensor] = field(default_factory=dict)
    score_seconds: float = 0.0

    def replay(self) -> Replay | None:
        """This process's decisions; None where none of them counts."""
        trajectories = (self.generated.trajectories if self.generated else None) or []
        counts = any(step.counts for trajectory in trajectories for step in trajectory.steps)
        return make_replay(trajectories) if counts else None


def make_scored(
    team: Team,
    make: MakeDialled,
    reward: Reward,
    prompts_B: Sequence[Prompt],
    seeds: Sequence[int],
    decision_seeds: Sequence[int] | None = None,
    gammas: Sequence[float] | None = None,
    judges: Mapping[str, Reward] = MappingProxyType({}),
) -> Rollout:
    """Makes and scores this process's share of B images, and tells the scores to the others.

    The share is a run of consecutive images. Groups stay whole where the processes divide the prompts; elsewhere one
    may end on the next process, which changes nothing: advantages are taken of all scores, by everyone.

    Args:
        team: the processes.
        make: images of prompts.
        reward: scores them.
        prompts_B: one per image.
        seeds: of the initial noise.
        decision_seeds: samples and records the decisions; None takes the policy's mode.
        gammas: one per image where there is a dial.
        judges: score the images besides.
    """
    mine = team.part(len(prompts_B))
    generated, scored, judged, seconds = None, Scored(_joined([]), {}), {}, 0.0
    if prompts_B[mine]:
        asked = None if decision_seeds is None else decision_seeds[mine]
        dialled = None if gammas is None else gammas[mine]
        generated = make(prompts_B[mine], seeds[mine], asked, asked is not None, dialled)
        images, texts = generated.images_B3HW, [p.text for p in prompts_B[mine]]
        began = time.monotonic()
        scored = judge(reward, images, texts, seeds[mine])
        judged = {name: checked_scores(other, images, texts, seeds[mine]) for name, other in judges.items()}
        seconds = time.monotonic() - began
    said = {
        "score": scored.score_B.tolist(),
        "parts": {key: part_B.tolist() for key, part_B in scored.parts.items()},
        "judged": {name: score_B.tolist() for name, score_B in judged.items()},
        "steps": generated.steps if generated else [],
    }
    heard = team.gather_json(said)
    # The last process has images where any has.
    parts, others = (
        {key: _joined([one[kind].get(key, []) for one in heard]) for key in heard[-1][kind]}
        for kind in ("parts", "judged")
    )
    steps = [n for one in heard for n in one["steps"]]
    scored = Scored(_joined([one["score"] for one in heard]), parts)
    return Rollout(scored, steps, mine, generated, others, seconds)


def _joined(scores: Sequence[list[Any]]) -> Tensor:
    return torch.tensor([score for part in scores for score in part], dtype=torch.float32, device="cpu")
