"""Tracks HTTP requests while their images are made. Engine threads report events, and the event loop reads them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tpdm.serving.engine.interface import Engine, Event, Failed, ImageDone, ImageRequest, StepEvent


@dataclass
class _Unread:
    index: int
    event: Event


class RequestHandle:
    """The images of one HTTP request. Made by ``RequestTracker.start``.

    A slow reader gets every event. If it requested previews of every step, only the newest preview of each image is
    kept. If it requested a number of previews, all are kept.

    Args:
        engine: Engine that makes the images.
        requests: One request per image.

    Attributes:
        id: Id of the HTTP request, which cannot be guessed.
        requests: One request per image.
    """

    def __init__(self, engine: Engine, requests: Sequence[ImageRequest]) -> None:
        self.id = f"img-{secrets.token_urlsafe(18)}"
        self.requests = tuple(requests)
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Unread | None] = asyncio.Queue()
        self._newest_preview: dict[int, _Unread] = {}  # by index, read or unread
        self._open: dict[int, str] = {}  # id in the engine of each unfinished image, by index

    def submit(self) -> None:
        """Submits all images. If one is refused, cancels those submitted before.

        Raises:
            TpdmError: The error of ``Engine.submit``.
        """
        try:
            for index, request in enumerate(self.requests):
                self._open[index] = self._engine.submit(request, self._reporter(index))
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> bool:
        """Cancels the unfinished images. Returns whether there was any."""
        return sum(self._engine.cancel(key) for key in tuple(self._open.values())) > 0

    async def events(self, pause: float = 3600.0) -> AsyncIterator[tuple[int, Event] | None]:
        """Yields (index of the image, event) until every image has ended.

        Args:
            pause: Seconds without an event after which None is yielded.
        """
        while self._open:
            tick = self._loop.call_later(pause, self._events.put_nowait, None)
            try:
                unread = await self._events.get()
            finally:
                tick.cancel()  # else the loop keeps the images of a disconnected client until then
            if unread is not None and isinstance(unread.event, ImageDone | Failed):
                del self._open[unread.index]
            yield None if unread is None else (unread.index, unread.event)

    def _reporter(self, index: int) -> Callable[[Event], None]:
        def report(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._put, _Unread(index, event))

        return report

    def _put(self, unread: _Unread) -> None:
        every = self.requests[unread.index].previews == "every"
        if every and isinstance(unread.event, StepEvent) and unread.event.preview is not None:
            older = self._newest_preview.get(unread.index)
            if older is not None and isinstance(older.event, StepEvent):
                older.event = replace(older.event, preview=None)
            self._newest_preview[unread.index] = unread
        self._events.put_nowait(unread)


class RequestTracker:
    """The HTTP requests that are being answered, by id.

    Args:
        engine: Engine that makes the images.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._handles: dict[str, RequestHandle] = {}

    def __len__(self) -> int:
        return len(self._handles)

    @contextlib.contextmanager
    def start(self, requests: Sequence[ImageRequest]) -> Iterator[RequestHandle]:
        """Submits images and gives their handle. At the end of the block, unfinished images are cancelled.

        Args:
            requests: One request per image.

        Raises:
            TpdmError: The error of ``Engine.submit``.
        """
        handle = RequestHandle(self._engine, requests)
        handle.submit()
        self._handles[handle.id] = handle
        try:
            yield handle
        finally:
            del self._handles[handle.id]
            handle.cancel()

    def cancel(self, call_id: str) -> bool:
        """Cancels the images of a request. Returns False if it is unknown or has ended."""
        handle = self._handles.get(call_id)
        return handle is not None and handle.cancel()
