"""The scheduler of slots of a pipeline that no engine schedules: first come, first served."""

from __future__ import annotations

import threading
from collections import deque

from tpdm.sampling.batching.denoiser import DenoiserBatcher, Slot


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
