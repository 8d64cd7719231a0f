"""Pictures that wait to be fetched by url: in memory, bounded, under names that nobody guesses."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class ImageStore:
    """Files by name; the oldest go first when there is no room.

    Args:
        limit: bytes of all files together.
        seconds: that a file is kept.
        clock: seconds that only rise.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def put(self, content: bytes, ending: str) -> str:
        """Keeps a file, unless it is larger than the store.

        Returns:
            Its name: 192 random bits and the ending.
        """
        name = f"{secrets.token_urlsafe(24)}.{ending}"
        with self._lock:
            self._files[name] = (self._clock() + self._seconds, content)
            self.bytes += len(content)
            self._drop_old()
        return name

    def get(self, name: str) -> bytes | None:
        """The file, or None if it never was, has expired or had to make room."""
        with self._lock:
            self._drop_old()
            found = self._files.get(name)
        return None if found is None else found[1]

    def _drop_old(self) -> None:
        now = self._clock()
        while self._files:
            expires, content = next(iter(self._files.values()))
            if expires > now and self.bytes <= self._limit:
                return
            self._files.popitem(last=False)
            self.bytes -= len(content)
