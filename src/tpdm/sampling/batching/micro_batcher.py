"""Tasks of many threads done together: whoever finds nobody at work does all that wait and are alike.

There is no thread of its own and no waiting for a fuller batch: what comes while others are at work is the next batch.
Only who has said that it is about to ask is waited for.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from queue import SimpleQueue
from typing import Generic, NoReturn, TypeVar

import torch

Task = TypeVar("Task")

Result = TypeVar("Result")


class Reservation:
    """Somebody who is about to ask; made by ``MicroBatcher.expect``."""

    def __init__(self, release_reservation: Callable[[], None]) -> None:
        self._withdraw = release_reservation
        self._open = True

    def release_reservation(self) -> None:
        """It has asked, or never will. May be called again, from its own thread."""
        if self._open:
            self._open = False
            self._withdraw()


class PendingItem(Generic[Task, Result]):
    """An item in the queue, and where its caller waits for the result."""

    def __init__(self, kind: Hashable, task: Task) -> None:
        self.kind, self.task = kind, task
        self.word: SimpleQueue[Callable[[], Result] | None] = SimpleQueue()  # None: do the work yourself


class MicroBatcher(Generic[Task, Result]):
    """Does tasks of equal kinds at once, kinds one after the other, first come, first served.

    Args:
        work: (tasks of one kind) -> a result for each, in their order. Never runs twice at once.

    Attributes:
        calls: of ``work``; those that failed and were done again one by one count once more each.
        tasks: done in them.
    """

    def __init__(self, work: Callable[[Sequence[Task]], Sequence[Result]]) -> None:
        self.calls = self.tasks = 0
        self._work = work
        self._changed = threading.Condition()
        self._line: list[PendingItem[Task, Result]] = []
        self._coming = 0
        self._busy = False

    def expect(self) -> Reservation:
        """Says that this thread is about to ask, so that whoever is first waits for it; withdraw it in any case."""
        with self._changed:
            self._coming += 1
        return Reservation(self._arrived)

    def ask(self, kind: Hashable, task: Task, most: int, expected: Reservation | None = None) -> Result:
        """Blocks until the task is done.

        Args:
            kind: tasks of equal kinds can be done together.
            task: for ``work``.
            most: tasks of this kind at once, at least 1.
            expected: of this thread, withdrawn once the task stands in the line.

        Raises:
            Exception: what ``work`` raised for this task alone.
        """
        wish: PendingItem[Task, Result] = PendingItem(kind, task)
        with self._changed:
            self._line.append(wish)
            if expected is not None:
                expected.release_reservation()
            self._changed.notify_all()
            lead, self._busy = not self._busy, True
        word = None if lead else wish.word.get()
        return self._lead(wish, most) if word is None else word()

    def _lead(self, wish: PendingItem[Task, Result], most: int) -> Result:
        with self._changed:
            self._changed.wait_for(lambda: not self._coming or len(self._alike(wish)) >= most)
            chosen = self._alike(wish)[:most]
            self._line = [one for one in self._line if one not in chosen]
        try:
            words = self._do(chosen)
        finally:
            with self._changed:
                if self._line:
                    self._line[0].word.put(None)
                else:
                    self._busy = False
        for one, word in zip(chosen[1:], words[1:], strict=True):
            one.word.put(word)
        return words[0]()

    def _alike(self, wish: PendingItem[Task, Result]) -> list[PendingItem[Task, Result]]:
        # The leader stands first in its line, so that it is always among them.
        return [one for one in self._line if one.kind == wish.kind]

    def _do(self, wishes: Sequence[PendingItem[Task, Result]]) -> list[Callable[[], Result]]:
        self.calls += 1
        found = self._try([wish.task for wish in wishes])
        if not isinstance(found, Exception):
            self.tasks += len(wishes)
            return [_returning(result) for result in found]
        clear_traceback_frames(found)
        if len(wishes) == 1:
            return [_raising(found)]
        return [word for wish in wishes for word in self._do([wish])]  # whose was it? The others go on.

    def _try(self, tasks: Sequence[Task]) -> Sequence[Result] | Exception:
        try:
            return self._work(tasks)
        except Exception as error:  # whoever waits has to be told
            return error

    def _arrived(self) -> None:
        with self._changed:
            self._coming -= 1
            self._changed.notify_all()


def _returning(result: Result) -> Callable[[], Result]:
    return lambda: result


def _raising(error: Exception) -> Callable[[], NoReturn]:
    held = [error]

    def say() -> NoReturn:
        raise held.pop()  # so that this frame and the error do not keep each other

    return say


def clear_traceback_frames(error: BaseException) -> None:
    """Frees what the frames of an error hold: the activations of a network, most of all. Where they stood stays.

    Call it when the error is no longer being handled: the frame that handles it cannot be freed.

    Args:
        error: and with it what it was raised from; out of memory empties the cache of the device too.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        torch.cuda.empty_cache()


class FifoLock:
    """``with turns:`` lets one thread in at a time, first come, first served."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._line: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._line.append(gate)
        gate.acquire()  # opened by the one before

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            if self._line:
                self._line.popleft().release()
            else:
                self._taken = False
