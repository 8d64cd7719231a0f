"""A lock that is handed over in the order of arrival, which ``threading.Lock`` does not promise."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
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
