"""Answers that end when the client leaves, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

T = TypeVar("T")
SEND_SECONDS = 60.0  # that a client may leave unread what it was sent, before the server hangs up
PAUSE = 10.0  # seconds without an event, after which a comment keeps proxies from hanging up
WAITING = b": still waiting\n\n"


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up.

    Args:
        receive: of ASGI; the body must have been read.
        work: what to wait for.

    Raises:
        ClientDisconnect: the client hung up first.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limit: int, seconds: float | None = None) -> bytes | None:
    """Reads the body of a request.

    Args:
        request: The request.
        limit: Maximum size in bytes. Reading stops when it is exceeded.
        seconds: Maximum time until the whole body has arrived. None waits without a limit.

    Returns:
        The body. None if it is longer than ``limit``.

    Raises:
        TimeoutError: The body did not arrive in time.
        ClientDisconnect: The client hung up.
    """

    async def read() -> bytes | None:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                return None
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:  # not the builtin before Python 3.11
        raise TimeoutError from None


def event(name: str, data: Mapping[str, object]) -> bytes:
    """One server-sent event; ``data`` is one line, as JSON is."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class EventStream(Response):
    """Sends events as they come; closes their source when they end, when the client leaves and when it stops reading.

    Args:
        first: was made before the status was sent.
        rest: what follows.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        # Proxies such as nginx keep answers back until they are whole, unless they are told not to.
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's call."""
        try:
            await cancel_on_disconnect(receive, self._send(send))
        finally:
            await self._rest.aclose()

    async def _send(self, send: Send) -> None:
        async def say(message: Message) -> None:
            # Not wait_for: before Python 3.12 it forgets that it was cancelled where the send ends in that moment, and
            # a client that left would have its pictures made to the end.
            sending = asyncio.ensure_future(send(message))
            try:
                await asyncio.wait({sending}, timeout=SEND_SECONDS)
            finally:
                in_time = not sending.cancel()  # which a send that has ended ignores
            if not in_time:
                raise ClientDisconnect
            sending.result()

        await say({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await say({"type": "http.response.body", "body": self._first, "more_body": True})
        async for chunk in self._rest:
            await say({"type": "http.response.body", "body": chunk, "more_body": True})
        await say({"type": "http.response.body", "body": b"", "more_body": False})
