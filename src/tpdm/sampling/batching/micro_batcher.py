"""Micro-batching: items of many threads that are processed in one call, without a thread of its own and without delay.

If no call is running, the thread that submits an item processes all waiting items with the same key. Items that arrive
during a call form the next batch. A batch waits only for threads that hold a ``Reservation``.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from queue import SimpleQueue
from typing import Generic, NoReturn, TypeVar

import torch

Item = TypeVar("Item")

Result = TypeVar("Result")


class Reservation:
    """Announces that a thread is about to submit an item. Made by ``MicroBatcher.reserve``."""

    def __init__(self, on_release: Callable[[], None]) -> None:
        self._on_release = on_release
        self._open = True

    def release(self) -> None:
        """Ends the reservation: the item is submitted, or never will be. May be called again, by the same thread."""
        if self._open:
            self._open = False
            self._on_release()


class PendingItem(Generic[Item, Result]):
    """An item in the queue, and where its thread waits for the result.

    Attributes:
        key: Batch key of the item.
        item: The item.
        outcome: Gets a function that returns the result or raises the error. None makes the waiting thread the leader,
            which processes the next batch.
    """

    def __init__(self, key: Hashable, item: Item) -> None:
        self.key, self.item = key, item
        self.outcome: SimpleQueue[Callable[[], Result] | None] = SimpleQueue()


class MicroBatcher(Generic[Item, Result]):
    """Processes items with equal keys in one call. Keys are served one after the other, first come, first served.

    Args:
        process: (items with one key) -> a result for each, in their order. Never runs twice at the same time.

    Attributes:
        calls: Number of calls of ``process``. Items that are retried one by one after an error count again.
        items: Number of items processed in them.

    Example:
        >>> batcher = MicroBatcher(lambda numbers: [2 * number for number in numbers])
        >>> batcher.submit(key="int", item=21, max_batch_size=8)
        42
    """

    def __init__(self, process: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self.calls = self.items = 0
        self._process = process
        self._changed = threading.Condition()
        self._waiting: list[PendingItem[Item, Result]] = []
        self._reserved = 0
        self._busy = False

    def reserve(self) -> Reservation:
        """Returns a reservation, for which the next batch waits. The caller has to release it in any case."""
        with self._changed:
            self._reserved += 1
        return Reservation(self._release)

    def submit(self, key: Hashable, item: Item, max_batch_size: int, reservation: Reservation | None = None) -> Result:
        """Blocks until the item is processed.

        Args:
            key: Items with equal keys can be processed together.
            item: Argument of ``process``.
            max_batch_size: Maximum number of items with this key in one call, at least 1.
            reservation: Reservation of this thread, released as soon as the item is in the queue.

        Raises:
            Exception: The error that ``process`` raised for this item alone.
        """
        pending: PendingItem[Item, Result] = PendingItem(key, item)
        with self._changed:
            self._waiting.append(pending)
            if reservation is not None:
                reservation.release()
            self._changed.notify_all()
            is_leader, self._busy = not self._busy, True
        outcome = None if is_leader else pending.outcome.get()
        return self._lead(pending, max_batch_size) if outcome is None else outcome()

    def _lead(self, pending: PendingItem[Item, Result], max_batch_size: int) -> Result:
        with self._changed:
            self._changed.wait_for(lambda: not self._reserved or len(self._matching(pending)) >= max_batch_size)
            batch = self._matching(pending)[:max_batch_size]
            self._waiting = [other for other in self._waiting if other not in batch]
        try:
            outcomes = self._compute(batch)
        finally:
            with self._changed:
                if self._waiting:
                    self._waiting[0].outcome.put(None)
                else:
                    self._busy = False
        for other, outcome in zip(batch[1:], outcomes[1:], strict=True):
            other.outcome.put(outcome)
        return outcomes[0]()

    def _matching(self, pending: PendingItem[Item, Result]) -> list[PendingItem[Item, Result]]:
        # The item of the leader is the first with its key, so that every batch contains it.
        return [other for other in self._waiting if other.key == pending.key]

    def _compute(self, batch: Sequence[PendingItem[Item, Result]]) -> list[Callable[[], Result]]:
        self.calls += 1
        results = self._try([pending.item for pending in batch])
        if not isinstance(results, Exception):
            self.items += len(batch)
            return [_returning(result) for result in results]
        clear_traceback_frames(results)
        if len(batch) == 1:
            return [_raising(results)]
        # One by one, so that only the items that fail alone get an error.
        return [outcome for pending in batch for outcome in self._compute([pending])]

    def _try(self, items: Sequence[Item]) -> Sequence[Result] | Exception:
        try:
            return self._process(items)
        except Exception as error:  # any error: the waiting threads need an outcome
            return error

    def _release(self) -> None:
        with self._changed:
            self._reserved -= 1
            self._changed.notify_all()


def _returning(result: Result) -> Callable[[], Result]:
    return lambda: result


def _raising(error: Exception) -> Callable[[], NoReturn]:
    errors = [error]

    def raise_error() -> NoReturn:
        raise errors.pop()  # else this frame and the error form a cycle

    return raise_error


def clear_traceback_frames(error: BaseException) -> None:
    """Frees the local variables in the frames of an error, such as the activations of a network.

    The line numbers of the traceback stay. Call it when the error is no longer being handled, because the frame that
    handles it cannot be cleared.

    Args:
        error: The error. Its causes are cleared as well. After an out-of-memory error, the cache of the device is
            emptied.
    """
    current: BaseException | None = error
    while current is not None:
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        torch.cuda.empty_cache()


class FifoLock:
    """Lock that serves the waiting threads in the order of their arrival.

    Example:
        >>> lock = FifoLock()
        >>> with lock:
        ...     print("one thread at a time")
        one thread at a time
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locked = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._locked:
                self._locked = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()  # released by the thread before

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._locked = False
