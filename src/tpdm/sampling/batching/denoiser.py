"""Merges the denoiser calls of running pipelines into batches, and gives each run its rows of the output.

Each pipeline runs in a thread of its own and blocks in its denoiser call. One more thread computes. It waits until all
running slots with calls that can be merged have made them, joins the calls, and calls the network once. A slot that is
added joins the next batch. A slot that is removed is no longer waited for. A scheduler decides which slots run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from itertools import count
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.pipelines.registry import find_entry
from tpdm.sampling.batching.collate import DenoiserCall, collate_calls, split_output
from tpdm.sampling.batching.micro_batcher import clear_traceback_frames
from tpdm.sampling.batching.policy import PolicyBatch, PolicyBatchMember
from tpdm.sampling.batching.proxy import DenoiserOutput, SharedFeatureHooks


class SlotScheduler(Protocol):
    """Decides which slots run, and adds them to the batcher. Both methods are called from the threads of the runs."""

    def request_slot(self, slot: Slot) -> None:
        """Queues a slot. Called once per slot."""

    def release_slot(self, slot: Slot, finished: bool) -> None:
        """Removes a slot from the batcher or from the queue, and gives its place to the next one.

        Args:
            slot: Slot that makes no further call. May be released before.
            finished: Whether its image has made its last step.
        """


class Slot:
    """Place of one run in the denoiser batches. The run makes its calls through it.

    Args:
        batcher: Batcher that computes the calls.
        scheduler: Scheduler that adds the slot to the batcher.
        key: Name of the run, for the scheduler.
    """

    def __init__(self, batcher: DenoiserBatcher, scheduler: SlotScheduler, key: str = "") -> None:
        self.key = key
        self._batcher, self._scheduler = batcher, scheduler
        self._requested = False
        self.pending: DenoiserCall | None = None
        self.signature: Hashable = None
        self.arrived = 0
        self.aborted_by: BaseException | None = None
        self.results: SimpleQueue[tuple[DenoiserOutput, PolicyBatchMember] | BaseException] = SimpleQueue()

    def request(self) -> None:
        """Queues the slot at its scheduler, unless it is queued already. The first call does this as well."""
        if not self._requested:
            self._requested = True
            self._scheduler.request_slot(self)

    def compute(self, call: DenoiserCall) -> tuple[DenoiserOutput, PolicyBatchMember]:
        """Blocks until the slot runs and the call is computed, in one batch with calls of other slots.

        Returns:
            The output, and this run's membership in the batch. The run has to call ``propose`` or ``skip`` on it.

        Raises:
            BackboneError: The network failed. All runs of the batch get this error. After an out-of-memory error the
                batch is first retried in halves, down to one run, unless the batcher is deterministic.
            BaseException: The argument of ``abort``.
        """
        if self._batcher.submit(self, call):
            self.request()
        result = self.results.get()
        if isinstance(result, BaseException):
            try:
                raise result
            finally:
                del result  # else this frame and the error form a cycle that keeps all frames in between
        return result

    def release(self, finished: bool = False) -> None:
        """Gives the slot back. May be called again."""
        self._scheduler.release_slot(self, finished)

    def abort(self, error: BaseException) -> None:
        """Makes the pending call of the run raise ``error``, or its next call if none is pending."""
        self._batcher.abort(self, error)


class DenoiserBatcher:
    """Computes the calls of the running slots in batches. A ``SlotScheduler`` decides which slots run.

    Args:
        denoiser: Network of a class in ``registry.DENOISERS``.
        deterministic: Whether a batch starts only when every running slot has made its call. If slots are also granted
            in a fixed order, the same runs are batched every time and give the same bits.

    Attributes:
        calls: Number of denoiser calls, failed ones included.
        rows: Number of rows computed in them.
    """

    def __init__(self, denoiser: nn.Module, deterministic: bool = False) -> None:
        self.calls = self.rows = 0
        self._denoiser, self._entry = denoiser, find_entry(denoiser)
        self._deterministic = deterministic
        self._changed = threading.Condition()
        self._running: dict[Slot, None] = {}
        self._arrivals = 0
        self._closed_by: BaseException | None = None
        self._thread = threading.Thread(target=self._compute_all, name="tpdm-denoiser", daemon=True)
        self._thread.start()

    def update(self, added: Sequence[Slot], removed: Slot | None = None) -> None:
        """Changes the set of running slots in one step, so that no batch is computed without the added ones.

        Args:
            added: Slots that run from now on.
            removed: Slot that no longer runs. May be unknown.
        """
        with self._changed:
            if removed is not None:
                self._running.pop(removed, None)
            for slot in added:
                self._running[slot] = None
                if self._deterministic:
                    slot.arrived = self.calls  # a clock with the same value every time
                if self._closed_by is not None:
                    self._fail(slot, self._closed_by)
            if self._ready():
                self._changed.notify()

    def submit(self, slot: Slot, call: DenoiserCall) -> bool:
        """Takes the call of a slot, which may run now or later. The result goes to ``slot.results``.

        Returns:
            False if the slot was aborted or the batcher is closed. The result is then the error.
        """
        with self._changed:
            error = self._closed_by or slot.aborted_by
            if error is not None:
                slot.results.put(error)
                return False
            slot.pending, slot.signature = call, call.signature
            if not self._deterministic:
                slot.arrived = self._arrivals
                self._arrivals += 1
            elif slot in self._running:
                slot.arrived = self.calls
            if self._ready():
                self._changed.notify()
            return True

    def abort(self, slot: Slot, error: BaseException) -> None:
        """See ``Slot.abort``."""
        with self._changed:
            slot.aborted_by = error
            self._fail(slot, error)

    def close(self, error: BaseException) -> None:
        """Fails every run with ``error`` at its next call and ends the thread.

        The running slots are then released. Those that the scheduler adds in their place fail in the same way.
        """
        with self._changed:
            self._closed_by = error
            for slot in self._running:
                self._fail(slot, error)
            self._changed.notify()
        self._thread.join()

    def _fail(self, slot: Slot, error: BaseException) -> None:
        if slot.pending is not None:
            slot.pending = None
            slot.results.put(error)

    def _ready(self) -> list[Slot]:
        """The complete group of slots that waits longest. The calls of a group have equal signatures."""
        if self._deterministic and any(slot.pending is None for slot in self._running):
            return []
        groups: dict[Hashable, list[Slot]] = {}
        for slot in self._running:
            groups.setdefault(slot.signature, []).append(slot)
        complete = [slots for slots in groups.values() if all(slot.pending is not None for slot in slots)]
        return min(complete, key=lambda slots: min(slot.arrived for slot in slots), default=[])

    @torch.no_grad()
    def _compute_all(self) -> None:
        with SharedFeatureHooks(self._denoiser) as hooks:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed_by is not None or self._ready())
                    if self._closed_by is not None:
                        return
                    slots = self._ready()
                    calls = [slot.pending for slot in slots if slot.pending is not None]
                    for slot in slots:
                        slot.pending = None
                self._compute(slots, calls, hooks)

    def _compute(self, slots: list[Slot], calls: list[DenoiserCall], hooks: SharedFeatureHooks) -> None:
        results = self._results(calls, hooks)
        batch = PolicyBatch(sum(isinstance(result, DenoiserOutput) for result in results))
        indices = count()
        for slot, result in zip(slots, results, strict=True):
            slot.results.put(
                (result, PolicyBatchMember(batch, next(indices))) if isinstance(result, DenoiserOutput) else result
            )

    def _results(self, calls: list[DenoiserCall], hooks: SharedFeatureHooks) -> list[DenoiserOutput | BackboneError]:
        """Computes one batch. After an out-of-memory error, computes its halves one after the other."""
        result = self._try(calls, hooks)
        if not isinstance(result, Exception):
            return list(result)
        hooks.take()  # drop the features of the failed attempt
        clear_traceback_frames(result)
        # A deterministic batcher always computes the same runs together: its user takes fewer slots instead.
        if isinstance(result, torch.OutOfMemoryError) and len(calls) > 1 and not self._deterministic:
            half = len(calls) // 2
            return [*self._results(calls[:half], hooks), *self._results(calls[half:], hooks)]
        message = str(result).strip().partition("\n")[0]
        return [_failure(result, message, len(calls)) for _ in calls]

    def _try(self, calls: list[DenoiserCall], hooks: SharedFeatureHooks) -> list[DenoiserOutput] | Exception:
        self.calls += 1
        self.rows += sum(call.rows for call in calls)
        try:
            output = self._denoiser(**collate_calls(calls, self._entry))
            return split_output(DenoiserOutput(output, hooks.take()), calls, self._entry)
        except Exception as error:  # any error: the waiting runs need a result
            return error


class FifoScheduler:
    """Grants slots in the order of the requests. A ``SlotScheduler``.

    Args:
        batcher: Batcher that computes the calls of the granted slots.
        num_slots: Maximum number of running slots, at least 1.
    """

    def __init__(self, batcher: DenoiserBatcher, num_slots: int) -> None:
        self._batcher, self._num_slots = batcher, num_slots
        self._mutex = threading.Lock()
        self._waiting: deque[Slot] = deque()
        self._running: set[Slot] = set()

    def request_slot(self, slot: Slot) -> None:
        """See ``SlotScheduler``."""
        with self._mutex:
            self._waiting.append(slot)
            self._batcher.update(self._admit())

    def release_slot(self, slot: Slot, finished: bool) -> None:
        """See ``SlotScheduler``."""
        with self._mutex:
            self._running.discard(slot)
            if slot in self._waiting:
                self._waiting.remove(slot)
            self._batcher.update(self._admit(), slot)

    def _admit(self) -> list[Slot]:
        admitted: list[Slot] = []
        while self._waiting and len(self._running) + len(admitted) < self._num_slots:
            admitted.append(self._waiting.popleft())
        self._running.update(admitted)
        return admitted


def _failure(error: Exception, message: str, num_runs: int) -> BackboneError:
    failure = BackboneError(f"The denoiser raised {type(error).__name__} for a batch of {num_runs} images: {message}")
    failure.__cause__ = error
    return failure
