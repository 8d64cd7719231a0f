"""The scheduler of the engine: which requests wait, which have a slot, and which is next.

A request passes through four states. It is *waiting* in the queue. It is *encoding* while its prompt is encoded, and
until it gets a slot. It is *denoising* while it has a slot. It is *decoding* after its last step, when its slot belongs
to the next request. It ends once.

Requests that cannot share a batch wait in groups of their own. The groups are served in turn, so that a burst of one
kind never blocks another.

The module contains no threads, clocks or tensors. The caller provides the lock and the time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from tpdm.serving.engine.interface import EngineStopped, QueueFull

State = Literal["waiting", "encoding", "denoising", "decoding"]
Outcome = Literal["finished", "cancelled", "expired", "failed"]

INITIAL_SLOT_SECONDS = 1.0  # estimate before the first image
SLOT_SECONDS_DECAY = 0.9  # weight of earlier images in the running mean


@dataclass
class _Ticket:
    group: Hashable
    deadline: float
    state: State = "waiting"
    started: float = 0.0
    aborted_as: Outcome | None = None  # takes effect at the next step


class Scheduler:
    """Queue and slots of one engine.

    Args:
        limit: Maximum number of waiting requests, beyond those that have a slot or can get one now.
        slots: Number of slots, at least 1.
        ahead: Maximum number of requests that are encoded before there is a slot for them. When half of them have got
            a slot, as many are started at once, so that their prompts are encoded together.

    Attributes:
        accepting: Whether ``submit`` accepts requests.
        ended: Number of ended requests by outcome.
        refused: Number of requests that were not accepted.
    """

    def __init__(self, limit: int, slots: int, ahead: int = 2) -> None:
        self.limit, self.slots, self.ahead = limit, slots, ahead
        self.accepting = True
        self.ended: Counter[Outcome] = Counter()
        self.refused = 0
        self._tickets: dict[str, _Ticket] = {}
        self._waiting: OrderedDict[Hashable, deque[str]] = OrderedDict()  # by group; the first is served next
        self._encoded: deque[str] = deque()  # requests in state "encoding" that need a slot, in order of arrival
        self._count: Counter[State] = Counter()
        self._starting = True
        self._slot_seconds = INITIAL_SLOT_SECONDS

    def __len__(self) -> int:
        """Returns the number of requests that were accepted and have not ended."""
        return len(self._tickets)

    @property
    def running(self) -> int:
        """Number of requests that have a slot, can get one now, or are being decoded."""
        decoding = self._count["decoding"]
        return min(len(self) - decoding, self.slots) + decoding

    @property
    def waiting(self) -> int:
        """Number of all other requests, at most ``limit``."""
        return len(self) - self.running

    @property
    def groups(self) -> int:
        """Number of groups with waiting requests."""
        return len(self._waiting)

    def submit(self, key: str, group: Hashable, deadline: float = float("inf")) -> None:
        """Accepts a request.

        Args:
            key: Id of the request, not used before.
            group: Batch key. Requests of other groups cannot share a denoiser batch.
            deadline: Time by which the request has to be finished.

        Raises:
            EngineStopped: ``stop`` was called.
            QueueFull: The queue is full.
        """
        if not self.accepting:
            self.refused += 1
            raise EngineStopped("The server is shutting down and accepts no new requests. Send the request again.")
        if len(self) - self._count["decoding"] >= self.slots + self.limit:
            self.refused += 1
            seconds = self.retry_after()
            raise QueueFull(
                f"The queue is full (queue limit: {self.limit}). Try again in {seconds:.1f} seconds.",
                seconds,
            )
        self._tickets[key] = _Ticket(group, deadline)
        self._count["waiting"] += 1
        self._waiting.setdefault(group, deque()).append(key)

    def retry_after(self) -> float:
        """Returns the estimated seconds until the next slot is free, from how long recent images used theirs."""
        return self._slot_seconds / self.slots

    @property
    def has_next(self) -> bool:
        """Whether ``start`` returns a request."""
        return bool(self._waiting) and self._starting

    def start(self, now: float) -> str | None:
        """Moves the next request from "waiting" to "encoding". The groups take turns.

        Returns:
            Its key. None if no request waits or enough are being encoded.
        """
        if not self.has_next:
            return None
        group, keys = self._waiting.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._waiting[group] = keys  # behind all other groups
        self._move(key, "encoding").started = now
        return key

    def request_slot(self, key: str) -> None:
        """Queues an encoded request for a slot."""
        self._encoded.append(key)

    def admit(self) -> list[str]:
        """Gives the free slots to encoded requests, first come, first served.

        Returns:
            Keys of the requests that moved from "encoding" to "denoising".
        """
        admitted = []
        while self._encoded and self._count["denoising"] < self.slots:
            admitted.append(self._encoded.popleft())
            self._move(admitted[-1], "denoising")
        return admitted

    def release_slot(self, key: str, now: float, finished: bool) -> None:
        """Takes the slot of a request away, or its place in the line for one.

        Args:
            key: Id of the request. Its slot may have been released before.
            now: Time of the release.
            finished: Whether its image has made its last step.
        """
        ticket = self._tickets[key]
        if ticket.state == "denoising":
            self._move(key, "decoding")
            if finished:
                seconds = now - ticket.started
                self._slot_seconds = SLOT_SECONDS_DECAY * self._slot_seconds + (1 - SLOT_SECONDS_DECAY) * seconds
        elif key in self._encoded:
            self._encoded.remove(key)

    def end(self, key: str, outcome: Outcome) -> Outcome | None:
        """Removes a request.

        Returns:
            How it ended: "cancelled" or "expired" if ``abort`` was called before, else ``outcome``. None if it had
            ended already. Exactly one caller gets an outcome, and this one answers the client.
        """
        ticket = self._tickets.pop(key, None)
        if ticket is None:
            return None
        self._count[ticket.state] -= 1
        if ticket.state == "waiting":
            self._waiting[ticket.group].remove(key)
            if not self._waiting[ticket.group]:
                del self._waiting[ticket.group]
        self._update_starting()
        ended = ticket.aborted_as or outcome
        self.ended[ended] += 1
        return ended

    def abort(self, key: str, reason: Literal["cancelled", "expired"]) -> State | None:
        """Ends a waiting request. Marks any other, so that it cannot end as "finished". The first mark counts.

        Returns:
            State of the request before the call. None if it is unknown or has ended.
        """
        ticket = self._tickets.get(key)
        if ticket is None:
            return None
        ticket.aborted_as = ticket.aborted_as or reason
        if ticket.state == "waiting":
            self.end(key, reason)
        return ticket.state

    def expired(self, now: float) -> list[str]:
        """Returns the requests whose deadline has passed and that were not aborted."""
        return [k for k, t in self._tickets.items() if t.deadline <= now and t.aborted_as is None]

    def next_deadline(self) -> float:
        """Returns the earliest deadline of the requests that were not aborted, infinity if there is none."""
        return min((t.deadline for t in self._tickets.values() if t.aborted_as is None), default=float("inf"))

    def stop(self) -> None:
        """Makes ``submit`` refuse all requests."""
        self.accepting = False

    def waiting_keys(self) -> list[str]:
        """Returns the ids of the waiting requests in the order of their arrival."""
        return [key for key, ticket in self._tickets.items() if ticket.state == "waiting"]

    def _move(self, key: str, state: State) -> _Ticket:
        ticket = self._tickets[key]
        self._count[ticket.state] -= 1
        self._count[state] += 1
        ticket.state = state
        self._update_starting()
        return ticket

    def _update_starting(self) -> None:
        busy = self._count["encoding"] + self._count["denoising"]
        if busy >= self.slots + self.ahead:
            self._starting = False
        elif busy <= self.slots + self.ahead // 2:
            self._starting = True
