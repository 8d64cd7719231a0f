"""Reading bodies, server-sent events, and work that is cancelled when the client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

T = TypeVar("T")
SEND_SECONDS = 60.0  # after which the server disconnects a client that does not read
KEEP_ALIVE_SECONDS = 10.0  # without an event, after which a comment keeps proxies from disconnecting
KEEP_ALIVE = b": still waiting\n\n"


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of ``work``, which is cancelled when the client disconnects.

    Args:
        receive: ASGI function of the request, whose body has been read.
        work: Coroutine to wait for.

    Raises:
        ClientDisconnect: The client disconnected first.
    """
    task = asyncio.create_task(work)
    disconnected = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        disconnected.cancel()
        task.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
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
        ClientDisconnect: The client disconnected.
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
    """Returns one server-sent event.

    Args:
        name: Type of the event.
        data: JSON object, written on one line.

    Example:
        >>> event("step", {"index": 0})
        b'event: step\\ndata: {"index":0}\\n\\n'
    """
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class EventStream(Response):
    """Response that sends events as they come.

    The source of the events is closed when they end, when the client disconnects, and when it stops reading.

    Args:
        first: First event, made before the status is sent.
        rest: Generator of the other events.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        # Proxies such as nginx buffer the whole answer without this header.
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response. Called by the ASGI server."""
        try:
            await cancel_on_disconnect(receive, self._send(send))
        finally:
            await self._rest.aclose()

    async def _send(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            # Not wait_for: before Python 3.12 it loses a cancellation that arrives when the send ends. The images of a
            # disconnected client would then be made to the end.
            sending = asyncio.ensure_future(send(message))
            try:
                await asyncio.wait({sending}, timeout=SEND_SECONDS)
            finally:
                in_time = not sending.cancel()  # False if the send has ended
            if not in_time:
                raise ClientDisconnect
            sending.result()

        await send_in_time({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send_in_time({"type": "http.response.body", "body": self._first, "more_body": True})
        async for chunk in self._rest:
            await send_in_time({"type": "http.response.body", "body": chunk, "more_body": True})
        await send_in_time({"type": "http.response.body", "body": b"", "more_body": False})
