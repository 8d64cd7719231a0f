"""The images of one denoiser call decide their next times together: one evaluation of the TPM instead of one each."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from queue import SimpleQueue
from typing import Any

import torch

from tpdm.core.types import Decision, Observation
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.batching.micro_batcher import clear_traceback_frames


@dataclass(frozen=True)
class DecisionRequest:
    """What one run asks of the policy, and where it waits for the decision."""

    place: int
    policy: TimePredictionModule
    observation: Observation
    seeds: Sequence[int] | None
    answers: SimpleQueue[Decision | Exception] = field(default_factory=SimpleQueue)

    @property
    def signature(self) -> Hashable:
        """Wishes of equal signatures can be evaluated as one."""
        parts = [getattr(self.observation, f.name) for f in fields(self.observation)]
        shapes = tuple(None if part is None else part.shape[1:] for part in parts)
        return id(self.policy), self.seeds is None, shapes


class PolicyBatch:
    """The runs of one denoiser call, each of which either wishes a decision or resigns.

    Whoever comes last evaluates for all. A run that needs no decision of this call (a fixed schedule, the first of two
    guidance calls, an error) resigns when it makes its next call or leaves, so nobody is waited for in vain.

    Args:
        size: runs in the call.
    """

    def __init__(self, size: int) -> None:
        self._mutex = threading.Lock()
        self._missing = size
        self._wishes: list[DecisionRequest] = []

    def propose(
        self, policy: TimePredictionModule, observation: Observation, seeds: Sequence[int] | None, place: int = 0
    ) -> Decision:
        """``policy.propose`` together with the others, rows in the order of their places in the call.

        Raises:
            TpdmError: as the policy does for this image.
        """
        wish = DecisionRequest(place, policy, observation, seeds)
        self._come(wish)
        decision = wish.answers.get()
        if isinstance(decision, Exception):
            try:
                raise decision
            finally:
                del decision  # or this frame and the error keep each other
        return decision

    def skip(self) -> None:
        """This run decides nothing (more) here."""
        self._come(None)

    def _come(self, wish: DecisionRequest | None) -> None:
        with self._mutex:
            self._missing -= 1
            if wish is not None:
                self._wishes.append(wish)
            if self._missing:
                return
        alike: dict[Hashable, list[DecisionRequest]] = {}
        for one in sorted(self._wishes, key=lambda wish: wish.place):  # whoever came first
            alike.setdefault(one.signature, []).append(one)
        for wishes in alike.values():
            _grant(wishes)


@dataclass(frozen=True)
class PolicyBatchMember:
    """One run of a cohort, at its place in the call."""

    cohort: PolicyBatch
    place: int

    def propose(self, policy: TimePredictionModule, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """See ``PolicyBatch.propose``."""
        return self.cohort.propose(policy, observation, seeds, self.place)

    def skip(self) -> None:
        """See ``PolicyBatch.skip``."""
        self.cohort.skip()


def _grant(wishes: list[DecisionRequest]) -> None:
    found = _try(wishes)
    if not isinstance(found, Exception):
        for wish, decision in zip(wishes, found, strict=True):
            wish.answers.put(decision)
        return
    clear_traceback_frames(found)
    if len(wishes) == 1:
        wishes[0].answers.put(found)
        return
    for wish in wishes:  # whose image was it? The others go on.
        _grant([wish])


def _try(wishes: list[DecisionRequest]) -> list[Decision] | Exception:
    try:
        return _decide(wishes)
    except Exception as error:  # whoever waits has to be told
        return error


def _decide(wishes: list[DecisionRequest]) -> list[Decision]:
    first = wishes[0]
    if len(wishes) == 1:
        return [first.policy.propose(first.observation, first.seeds)]
    joined = replace(first.observation, **{f.name: _join(wishes, f.name) for f in fields(Observation)})
    seeds = None if first.seeds is None else [seed for wish in wishes for seed in wish.seeds or ()]
    whole, parts, start = first.policy.propose(joined, seeds), [], 0
    for wish in wishes:
        rows = slice(start, start + len(wish.observation.t_B))
        parts.append(Decision(**{f.name: getattr(whole, f.name)[rows] for f in fields(Decision)}))
        start = rows.stop
    return parts


def _join(wishes: list[DecisionRequest], name: str) -> Any:
    parts = [getattr(wish.observation, name) for wish in wishes]
    return None if parts[0] is None else torch.cat(parts)
