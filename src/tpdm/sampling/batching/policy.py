"""Policy decisions in batches: the runs of one denoiser batch share one evaluation of the TPM."""

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
    """Arguments of ``propose`` of one run, and where it waits for the decision."""

    index: int
    policy: TimePredictionModule
    observation: Observation
    seeds: Sequence[int] | None
    results: SimpleQueue[Decision | Exception] = field(default_factory=SimpleQueue)

    @property
    def signature(self) -> Hashable:
        """Requests with equal signatures can be evaluated together."""
        parts = [getattr(self.observation, f.name) for f in fields(self.observation)]
        shapes = tuple(None if part is None else part.shape[1:] for part in parts)
        return id(self.policy), self.seeds is None, shapes


class PolicyBatch:
    """The runs of one denoiser batch. Each of them calls either ``propose`` or ``skip``, once.

    The last run to arrive evaluates the policy for the whole batch. A run that needs no decision (a fixed schedule, the
    first of two guidance calls, or an error) calls ``skip``, so that the others do not wait for it.

    Args:
        size: Number of runs in the batch.
    """

    def __init__(self, size: int) -> None:
        self._mutex = threading.Lock()
        self._missing = size
        self._requests: list[DecisionRequest] = []

    def propose(
        self, policy: TimePredictionModule, observation: Observation, seeds: Sequence[int] | None, index: int = 0
    ) -> Decision:
        """Blocks until all runs have arrived, and returns the rows of this run of one ``policy.propose``.

        Args:
            policy: Policy of the run.
            observation: Its observation.
            seeds: Seeds of its decisions, one per row. None takes the mode.
            index: Index of the run in the batch, which orders the rows.

        Raises:
            TpdmError: The error of the policy for this image.
        """
        request = DecisionRequest(index, policy, observation, seeds)
        self._arrive(request)
        result = request.results.get()
        if isinstance(result, Exception):
            try:
                raise result
            finally:
                del result  # else this frame and the error form a cycle
        return result

    def skip(self) -> None:
        """Arrives without a request."""
        self._arrive(None)

    def _arrive(self, request: DecisionRequest | None) -> None:
        with self._mutex:
            self._missing -= 1
            if request is not None:
                self._requests.append(request)
            if self._missing:
                return
        groups: dict[Hashable, list[DecisionRequest]] = {}
        for one in sorted(self._requests, key=lambda request: request.index):  # independent of the order of arrival
            groups.setdefault(one.signature, []).append(one)
        for requests in groups.values():
            _resolve(requests)


@dataclass(frozen=True)
class PolicyBatchMember:
    """One run of a batch, with its index."""

    batch: PolicyBatch
    index: int

    def propose(self, policy: TimePredictionModule, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """See ``PolicyBatch.propose``."""
        return self.batch.propose(policy, observation, seeds, self.index)

    def skip(self) -> None:
        """See ``PolicyBatch.skip``."""
        self.batch.skip()


def _resolve(requests: list[DecisionRequest]) -> None:
    decisions = _try(requests)
    if not isinstance(decisions, Exception):
        for request, decision in zip(requests, decisions, strict=True):
            request.results.put(decision)
        return
    clear_traceback_frames(decisions)
    if len(requests) == 1:
        requests[0].results.put(decisions)
        return
    for request in requests:  # one by one, so that only the images that fail alone get an error
        _resolve([request])


def _try(requests: list[DecisionRequest]) -> list[Decision] | Exception:
    try:
        return _decide(requests)
    except Exception as error:  # any error: the waiting runs need a result
        return error


def _decide(requests: list[DecisionRequest]) -> list[Decision]:
    first = requests[0]
    if len(requests) == 1:
        return [first.policy.propose(first.observation, first.seeds)]
    joined = replace(first.observation, **{f.name: _join(requests, f.name) for f in fields(Observation)})
    seeds = None if first.seeds is None else [seed for request in requests for seed in request.seeds or ()]
    batch, decisions, start = first.policy.propose(joined, seeds), [], 0
    for request in requests:
        rows = slice(start, start + len(request.observation.t_B))
        decisions.append(Decision(**{f.name: getattr(batch, f.name)[rows] for f in fields(Decision)}))
        start = rows.stop
    return decisions


def _join(requests: list[DecisionRequest], name: str) -> Any:
    parts = [getattr(request.observation, name) for request in requests]
    return None if parts[0] is None else torch.cat(parts)
