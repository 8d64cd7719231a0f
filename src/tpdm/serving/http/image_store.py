"""Store of images that are requested by url: in memory, with limits, under names that cannot be guessed."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class ImageStore:
    """Files by name. The oldest ones are removed if the store is full.

    Args:
        limit: Maximum size of all files in bytes.
        seconds: Seconds for which a file is kept.
        clock: Returns the time in seconds, monotonic.

    Attributes:
        bytes: Size of all files in bytes.

    Example:
        >>> store = ImageStore(limit=100, seconds=60.0)
        >>> store.get(store.put(b"content", "png"))
        b'content'
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def put(self, content: bytes, suffix: str) -> str:
        """Adds a file, unless it is larger than the store.

        Args:
            content: Content of the file.
            suffix: Suffix of its name, without a dot.

        Returns:
            Name of the file: 192 random bits and the suffix.
        """
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        with self._lock:
            self._files[name] = (self._clock() + self._seconds, content)
            self.bytes += len(content)
            self._drop_old()
        return name

    def get(self, name: str) -> bytes | None:
        """Returns the content of a file. None if it does not exist, has expired or was removed for newer ones."""
        with self._lock:
            self._drop_old()
            entry = self._files.get(name)
        return None if entry is None else entry[1]

    def _drop_old(self) -> None:
        now = self._clock()
        while self._files:
            expires, content = next(iter(self._files.values()))
            if expires > now and self.bytes <= self._limit:
                return
            self._files.popitem(last=False)
            self.bytes -= len(content)
