"""One HTTP request while its images are made: engine threads report, the event loop reads."""

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
    """The images of one request, asked of the engine together. Made by ``RequestTracker.start``.

    A reader that falls behind misses no event. Where it wants a picture of every step, the newest of each image alone
    waits for it; where it wants a number of them, all do.
    """

    def __init__(self, engine: Engine, requests: Sequence[ImageRequest]) -> None:
        self.id = f"img-{secrets.token_urlsafe(18)}"
        self.requests = tuple(requests)
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Unread | None] = asyncio.Queue()
        self._pictured: dict[int, _Unread] = {}  # index -> the newest of its previews, read or not
        self._open: dict[int, str] = {}  # index -> the engine's id, of images that are not finished

    def submit(self) -> None:
        """Hands every image over, or none: what was queued before a refusal is taken back.

        Raises:
            TpdmError: as ``Engine.submit``.
        """
        try:
            for index, request in enumerate(self.requests):
                self._open[index] = self._engine.submit(request, self._reporter(index))
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> bool:
        """Ends what is not finished; whether there was anything."""
        return sum(self._engine.cancel(one) for one in tuple(self._open.values())) > 0

    async def events(self, pause: float = 3600.0) -> AsyncIterator[tuple[int, Event] | None]:
        """(index of the image, event) until every image has ended; None after ``pause`` seconds without any."""
        while self._open:
            tick = self._loop.call_later(pause, self._events.put_nowait, None)
            try:
                found = await self._events.get()
            finally:
                tick.cancel()  # a client that left would keep its pictures in the loop until then
            if found is not None and isinstance(found.event, ImageDone | Failed):
                del self._open[found.index]
            yield None if found is None else (found.index, found.event)

    def _reporter(self, index: int) -> Callable[[Event], None]:
        def report(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._put, _Unread(index, event))

        return report

    def _put(self, one: _Unread) -> None:
        every = self.requests[one.index].previews == "every"
        if every and isinstance(one.event, StepEvent) and one.event.preview is not None:
            older = self._pictured.get(one.index)
            if older is not None and isinstance(older.event, StepEvent):
                older.event = replace(older.event, preview=None)
            self._pictured[one.index] = one
        self._events.put_nowait(one)


class RequestTracker:
    """The requests that are being answered, by id."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: dict[str, RequestHandle] = {}

    def __len__(self) -> int:
        return len(self._calls)

    @contextlib.contextmanager
    def start(self, requests: Sequence[ImageRequest]) -> Iterator[RequestHandle]:
        """A call that was submitted; whatever is not finished at the end of the block is cancelled.

        Raises:
            TpdmError: as ``Engine.submit``.
        """
        call = RequestHandle(self._engine, requests)
        call.submit()
        self._calls[call.id] = call
        try:
            yield call
        finally:
            del self._calls[call.id]
            call.cancel()

    def cancel(self, call_id: str) -> bool:
        """Ends the images of a call; False if it is unknown or over."""
        call = self._calls.get(call_id)
        return call is not None and call.cancel()
