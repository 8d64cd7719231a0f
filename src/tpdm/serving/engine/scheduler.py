"""Who waits, who is being made and who is next: the bookkeeping of the engine, without threads, clocks or torch.

Every request is in one place. It waits in the queue; it is taken, and its text encoded; it is seated, a place among
the images of the denoiser call is its own; it is unseated, only decoding is left and its place goes to the next; it
ends, once. Requests that cannot share a call wait in queues of their own, which are served in turn, so that a burst of
one kind never shuts out another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from tpdm.serving.engine.interface import EngineStopped, QueueFull

Place = Literal["waiting", "taken", "seated", "unseated"]
Outcome = Literal["finished", "cancelled", "expired", "failed"]

FIRST_GUESS = 1.0  # seconds that an image holds its place, before any has been made
MEMORY = 0.9  # weight of the past in the mean of those seconds


@dataclass
class _Ticket:
    group: Hashable
    deadline: float
    place: Place = "waiting"
    taken_at: float = 0.0
    ended_by: Outcome | None = None  # asked for, and due at the next step


class Scheduler:
    """All requests of one engine; the caller brings the lock and the time (seconds of any one clock).

    Args:
        limit: requests that may wait beyond those that have, or are about to get, a place.
        slots: places, at least 1.
        ahead: requests whose text may be encoded before there is a place for them. When half of them are gone as many
            are taken at once, so that texts are encoded together.
    """

    def __init__(self, limit: int, slots: int, ahead: int = 2) -> None:
        self.limit, self.slots, self.ahead = limit, slots, ahead
        self.accepting = True
        self.ended: Counter[Outcome] = Counter()
        self.refused = 0
        self._tickets: dict[str, _Ticket] = {}
        self._groups: OrderedDict[Hashable, deque[str]] = OrderedDict()
        self._in: Counter[Place] = Counter()
        self._taking = True
        self._hold = FIRST_GUESS

    def __len__(self) -> int:
        """Requests that were accepted and have not ended."""
        return len(self._tickets)

    @property
    def running(self) -> int:
        """Images that have a place or are about to get one, and those being decoded."""
        unseated = self._in["unseated"]
        return min(len(self) - unseated, self.slots) + unseated

    @property
    def waiting(self) -> int:
        """All others; at most ``limit``."""
        return len(self) - self.running

    def submit(self, key: str, group: Hashable, deadline: float = float("inf")) -> None:
        """Accepts a request.

        Args:
            key: its id, not seen before.
            group: requests of other groups cannot share a denoiser call.
            deadline: when it has to be finished.

        Raises:
            EngineStopped: ``stop`` was called.
            QueueFull: no room.
        """
        if not self.accepting:
            self.refused += 1
            raise EngineStopped("got a request while the server shuts down, expected it elsewhere; send it again.")
        if len(self) - self._in["unseated"] >= self.slots + self.limit:
            self.refused += 1
            seconds = self.retry_after()
            raise QueueFull(
                f"got a request with {self.limit} waiting already, expected fewer; try again in {seconds:.1f} seconds.",
                seconds,
            )
        self._tickets[key] = _Ticket(group, deadline)
        self._in["waiting"] += 1
        self._groups.setdefault(group, deque()).append(key)

    def retry_after(self) -> float:
        """Seconds until the next place is free, as far as the images of late can tell."""
        return self._hold / self.slots

    @property
    def has_next(self) -> bool:
        """Whether ``take`` would give one."""
        return bool(self._groups) and self._taking

    def take(self, now: float) -> str | None:
        """The next request to work on, of each group in turn; None when none waits or enough are being worked on."""
        if not self.has_next:
            return None
        group, keys = self._groups.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._groups[group] = keys  # behind all others
        self._move(key, "taken").taken_at = now
        return key

    def seat(self, key: str) -> None:
        """A taken request got its place."""
        self._move(key, "seated")

    def unseat(self, key: str, now: float) -> None:
        """An image made its last step; decoding is left."""
        ticket = self._move(key, "unseated")
        self._hold = MEMORY * self._hold + (1 - MEMORY) * (now - ticket.taken_at)

    def end(self, key: str, outcome: Outcome) -> Outcome | None:
        """Takes a request out for good.

        Returns:
            How it ended, which is "cancelled" or "expired" where that was asked for before; None if it had
            ended already, so that whoever gets an outcome, and nobody else, answers the client.
        """
        ticket = self._tickets.pop(key, None)
        if ticket is None:
            return None
        self._in[ticket.place] -= 1
        if ticket.place == "waiting":
            self._groups[ticket.group].remove(key)
            if not self._groups[ticket.group]:
                del self._groups[ticket.group]
        self._balance()
        ended = ticket.ended_by or outcome
        self.ended[ended] += 1
        return ended

    def ask_to_end(self, key: str, why: Literal["cancelled", "expired"]) -> Place | None:
        """Ends a waiting request; marks any other, which then can no longer end as "finished". The first mark counts.

        Returns:
            Where it was; None if it is unknown or has ended.
        """
        ticket = self._tickets.get(key)
        if ticket is None:
            return None
        ticket.ended_by = ticket.ended_by or why
        if ticket.place == "waiting":
            self.end(key, why)
        return ticket.place

    def overdue(self, now: float) -> list[str]:
        """Requests whose deadline has passed and that nobody asked to end yet."""
        return [k for k, t in self._tickets.items() if t.deadline <= now and t.ended_by is None]

    def next_deadline(self) -> float:
        """The earliest deadline of those that nobody asked to end; infinity where there is none."""
        return min((t.deadline for t in self._tickets.values() if t.ended_by is None), default=float("inf"))

    def stop(self) -> None:
        """Accepts nothing from now on."""
        self.accepting = False

    def waiting_keys(self) -> list[str]:
        """Ids of those that nobody has taken, in the order of their arrival."""
        return [key for key, ticket in self._tickets.items() if ticket.place == "waiting"]

    def _move(self, key: str, place: Place) -> _Ticket:
        ticket = self._tickets[key]
        self._in[ticket.place] -= 1
        self._in[place] += 1
        ticket.place = place
        self._balance()
        return ticket

    def _balance(self) -> None:
        busy = self._in["taken"] + self._in["seated"]
        if busy >= self.slots + self.ahead:
            self._taking = False
        elif busy <= self.slots + self.ahead // 2:
            self._taking = True
