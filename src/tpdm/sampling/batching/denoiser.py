"""The place where running pipelines meet: their denoiser calls wait for each other and are computed as one.

Each pipeline runs in a thread of its own and blocks in its denoiser call. One more thread computes: as soon as all
running pipelines whose calls go together have made theirs, it joins them, calls the network once, and hands each its
rows. A pipeline that comes in the middle joins the next call; one that leaves is not waited for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from itertools import count
from queue import SimpleQueue

import torch
from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.pipelines.registry import find_entry
from tpdm.sampling.batching.collate import DenoiserCall, collate_calls, split_output
from tpdm.sampling.batching.micro_batcher import clear_traceback_frames
from tpdm.sampling.batching.policy import PolicyBatch, PolicyBatchMember
from tpdm.sampling.batching.proxy import DenoiserOutput, SharedFeatureHooks


class Slot:
    """The part of one pipeline run in the meeting: waits for a place, then asks for one call after the other.

    Args:
        meeting: made it.
        on_place: called once, when it gets its place; must return at once.
    """

    def __init__(self, meeting: DenoiserBatcher, on_place: Callable[[], None]) -> None:
        self._meeting, self.on_place = meeting, on_place
        self.pending: DenoiserCall | None = None
        self.signature: Hashable = None
        self.arrived = 0
        self.stopped_by: BaseException | None = None
        self.answers: SimpleQueue[tuple[DenoiserOutput, PolicyBatchMember] | BaseException] = SimpleQueue()

    def ask(self, call: DenoiserCall) -> tuple[DenoiserOutput, PolicyBatchMember]:
        """Blocks until the call is computed, together with those of others.

        Returns:
            The answer, and this run's part in the cohort that was computed together; it has to propose or resign.

        Raises:
            BackboneError: the network failed; all runs in that call get this. Where memory was short, the call was
                tried in halves before, down to one run, unless runs go in order.
            BaseException: what ``stop`` was given.
        """
        self._meeting.bring(self, call)
        answer = self.answers.get()
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer  # or this frame and the error keep each other, and all frames on the way
        return answer

    def leave(self) -> None:
        """Gives the place away; nobody waits for this run any more. May be called again."""
        self._meeting.remove(self)

    def stop(self, error: BaseException) -> None:
        """Makes the call that this run waits in, or else its next one, raise ``error``."""
        self._meeting.stop(self, error)


class DenoiserBatcher:
    """Merges the calls of at most ``places`` runs at a time; others wait for a place, first come, first served.

    Args:
        denoiser: of a class in ``backbones.DENOISERS``.
        places: runs whose calls are computed together at most.
        in_order: places go to runs in the order in which they were made, and no call starts while one of those that
            have a place has still to ask: then the same runs are computed together every time, to the bit.

    Attributes:
        calls: denoiser calls computed; those that failed count as well.
        rows: rows computed in them.
    """

    def __init__(self, denoiser: nn.Module, places: int, in_order: bool = False) -> None:
        self.calls = self.rows = 0
        self._denoiser, self._entry, self._places = denoiser, find_entry(denoiser), places
        self._in_order = in_order
        self._changed = threading.Condition()
        self._seated: dict[Slot, None] = {}
        self._standing: deque[Slot] = deque()
        self._arrivals = 0
        self._closed_by: BaseException | None = None
        self._thread = threading.Thread(target=self._compute_all, name="tpdm-denoiser", daemon=True)
        self._thread.start()

    def seat(self, on_place: Callable[[], None] = lambda: None) -> Slot:
        """A new participant; where it goes by order, its place is booked at once, otherwise it has none yet."""
        seat = Slot(self, on_place)
        if self._in_order:
            with self._changed:
                self._standing.append(seat)
                self._fill_places()
        return seat

    def bring(self, seat: Slot, call: DenoiserCall) -> None:
        """Hands in a call; the answer goes to the seat."""
        with self._changed:
            stopped = self._closed_by or seat.stopped_by
            if stopped is not None:
                seat.answers.put(stopped)
                return
            seat.pending, seat.signature = call, call.signature
            if not self._in_order:
                seat.arrived = self._arrivals
                self._arrivals += 1
                if seat not in self._seated:
                    self._standing.append(seat)
            elif seat in self._seated:
                seat.arrived = self.calls
            self._fill_places()

    def remove(self, seat: Slot) -> None:
        """Takes a participant out."""
        with self._changed:
            self._seated.pop(seat, None)
            if seat in self._standing:
                self._standing.remove(seat)
            self._fill_places()

    def stop(self, seat: Slot, error: BaseException) -> None:
        """See ``Slot.stop``."""
        with self._changed:
            seat.stopped_by = error
            if seat.pending is not None:
                seat.pending = None
                seat.answers.put(error)

    def close(self, error: BaseException) -> None:
        """Lets every run fail with ``error`` at its next call and ends the thread."""
        with self._changed:
            self._closed_by = error
            for seat in [*self._seated, *self._standing]:
                if seat.pending is not None:
                    seat.pending = None
                    seat.answers.put(error)
            self._changed.notify()
        self._thread.join()

    def _fill_places(self) -> None:
        while self._standing and len(self._seated) < self._places:
            seat = self._standing.popleft()
            self._seated[seat] = None
            if self._in_order:
                seat.arrived = self.calls  # a clock that is the same every time
            seat.on_place()
        if self._ready():
            self._changed.notify()

    def _ready(self) -> list[Slot]:
        """Seats whose calls go together and are all there; where there are several such groups, the one that waits
        longest."""
        if self._in_order and any(seat.pending is None for seat in self._seated):
            return []
        groups: dict[Hashable, list[Slot]] = {}
        for seat in self._seated:
            groups.setdefault(seat.signature, []).append(seat)
        complete = [seats for seats in groups.values() if all(seat.pending is not None for seat in seats)]
        return min(complete, key=lambda seats: min(seat.arrived for seat in seats), default=[])

    @torch.no_grad()
    def _compute_all(self) -> None:
        with SharedFeatureHooks(self._denoiser) as taps:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed_by is not None or self._ready())
                    if self._closed_by is not None:
                        return
                    seats = self._ready()
                    calls = [seat.pending for seat in seats if seat.pending is not None]
                    for seat in seats:
                        seat.pending = None
                self._compute(seats, calls, taps)

    def _compute(self, seats: list[Slot], calls: list[DenoiserCall], taps: SharedFeatureHooks) -> None:
        answers = self._answers(calls, taps)
        cohort = PolicyBatch(sum(isinstance(answer, DenoiserOutput) for answer in answers))
        places = count()
        for seat, answer in zip(seats, answers, strict=True):
            seat.answers.put(
                (answer, PolicyBatchMember(cohort, next(places))) if isinstance(answer, DenoiserOutput) else answer
            )

    def _answers(self, calls: list[DenoiserCall], taps: SharedFeatureHooks) -> list[DenoiserOutput | BackboneError]:
        """Of one call, or of its halves one after the other where memory does not hold it whole."""
        found = self._try(calls, taps)
        if not isinstance(found, Exception):
            return list(found)
        taps.take()  # of an attempt that is over
        clear_traceback_frames(found)
        # In order, the same runs are always computed together: whoever wants that takes fewer places himself.
        if isinstance(found, torch.OutOfMemoryError) and len(calls) > 1 and not self._in_order:
            half = len(calls) // 2
            return [*self._answers(calls[:half], taps), *self._answers(calls[half:], taps)]
        said = str(found).strip().partition("\n")[0]
        return [_failure(found, said, len(calls)) for _ in calls]

    def _try(self, calls: list[DenoiserCall], taps: SharedFeatureHooks) -> list[DenoiserOutput] | Exception:
        self.calls += 1
        self.rows += sum(call.rows for call in calls)
        try:
            output = self._denoiser(**collate_calls(calls, self._entry))
            return split_output(DenoiserOutput(output, taps.take()), calls, self._entry)
        except Exception as error:  # whatever it is, those who wait have to be told
            return error


def _failure(error: Exception, said: str, images: int) -> BackboneError:
    failure = BackboneError(
        f"got {type(error).__name__} from the denoiser in a call of {images} runs, expected its output: {said}"
    )
    failure.__cause__ = error
    return failure
