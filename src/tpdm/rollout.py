"""Rollout (images with their recorded decisions) and replay (those decisions as one flat batch)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpdm.portion import Portion
from tpdm.rollout_images import Album, Asked, Generated, Sampler, naming
from tpdm.types import Observation, TrainingError, Trajectory

if TYPE_CHECKING:  # training on another sampler loads no diffusers
    from tpdm.pipelines.attach import AdaptiveOutput, AdaptivePipeline
    from tpdm.pipelines.texts import TextStore

__all__ = ["Generated", "PipelineSampler", "Replay", "Sampler", "make_replay", "naming"]


@dataclass(frozen=True)
class PipelineSampler:
    """A ``Sampler`` on an attached pipeline.

    Attributes:
        pipeline: made by ``attach``.
        batch: images in flight at once, fewer where memory is short; memory and speed only, never the result.
        arguments: of the pipeline call (guidance_scale, height ...).
        texts: embeddings made before, of all prompts that will come; None lets the pipeline encode them.
        decode_batch: images decoded at once; None decodes the batch.
    """

    pipeline: AdaptivePipeline
    batch: int
    arguments: dict[str, Any]
    texts: TextStore | None = None
    decode_batch: int | None = None
    _portion: Portion = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_portion", Portion(self.batch, "rl.rollout_batch", "images"))

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        decision_seeds: Sequence[int] | None = None,
        record: bool = False,
        negatives: Sequence[str] | None = None,
        gammas: Sequence[float] | None = None,
    ) -> Generated:
        """See ``Sampler``."""
        asked = Asked(prompts, seeds, decision_seeds, record, negatives, gammas, self.arguments)
        album, done = Album(len(prompts)), 0
        while done < len(prompts):
            part = slice(done, done + self._portion.size)
            output = self._try(asked, part)
            if output is None:
                self._portion.halve(len(prompts[part]))
                continue
            album.put(part, output)
            done += len(output.steps)
        return album.generated(record)

    @property
    def in_flight(self) -> int:
        """Images in flight from now on: ``batch``, or what memory turned out to hold."""
        return self._portion.size

    def _decoding(self) -> AbstractContextManager[None]:
        if self.decode_batch is None:
            return nullcontext()
        from tpdm.pipelines.decoding import decoding_in_slices

        return decoding_in_slices(self.pipeline.pipe, self.decode_batch)

    def _try(self, asked: Asked, part: slice) -> AdaptiveOutput | None:
        """One call of the pipeline; None where memory does not hold it, and then nothing of it is held any more."""
        device = None if self.texts is None else self.pipeline.pipe._execution_device
        call = asked.call(part, self.texts, device)
        try:
            with naming(asked.prompts[part], asked.seeds[part]), self._decoding():
                return self.pipeline(**call)
        except torch.OutOfMemoryError:
            return None


@dataclass(frozen=True)
class Replay:
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

    def part(self, first: int, last: int) -> Replay:
        """Trajectories first <= n < last alone, renumbered from 0; views, nothing is copied."""
        edges = torch.tensor([first, last], dtype=torch.int64, device="cpu")
        begin, end = torch.searchsorted(self.segment_T, edges).tolist()
        rows = slice(begin, end)
        return Replay(
            self.observation.rows(rows),
            self.action_T[rows],
            self.logp_T[rows],
            self.segment_T[rows] - first,
            last - first,
        )


def make_replay(trajectories: Sequence[Trajectory]) -> Replay:
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
    return Replay(
        observation,
        torch.tensor([s.action for _, s in steps], dtype=torch.float32, device="cpu"),
        torch.tensor([s.logp for _, s in steps], dtype=torch.float32, device="cpu"),
        torch.tensor([n for n, _ in steps], dtype=torch.int64, device="cpu"),
        len(trajectories),
    )
