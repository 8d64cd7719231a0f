"""The answers that need an engine: pictures at once or event by event, their end, their files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from tpdm.serving.engine.interface import Failed, ImageDone, StepEvent
from tpdm.serving.http.errors import ApiError, api_error, internal_error
from tpdm.serving.http.image_encoding import b64, media_type
from tpdm.serving.http.image_store import ImageStore
from tpdm.serving.http.metrics import Metrics
from tpdm.serving.http.protocol import ParsedRequest, facts, parse
from tpdm.serving.http.request_tracker import RequestTracker
from tpdm.serving.http.settings import ModelCard, Settings
from tpdm.serving.http.streaming import PAUSE, WAITING, EventStream, cancel_on_disconnect, event, read_body
from tpdm.serving.process import describe

logger = logging.getLogger("tpdm.serving")


class Handlers:
    """The handlers of the routes below /v1 that make, end and hand out pictures."""

    def __init__(
        self, calls: RequestTracker, card: ModelCard, settings: Settings, metrics: Metrics, store: ImageStore
    ) -> None:
        self._calls, self._card, self._settings = calls, card, settings
        self._metrics, self._store = metrics, store

    async def generate(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        asked = parse(await self._body(request), self._settings, self._card)
        first = asked.images[0]
        shown = f" {first.prompt!r}" if self._settings.log_prompts else ""
        logger.info("%s %d images of seed %d%s", request.state.request_id, len(asked.images), first.seed, shown)
        if not asked.stream:
            return JSONResponse(await cancel_on_disconnect(request.receive, self._collect(asked, request)))
        events = self._events(asked, request)
        return EventStream(await anext(events), events)  # the first at once: a refusal is a status, not an event

    async def cancel(self, call_id: str) -> JSONResponse:
        """DELETE /v1/requests/{call_id}."""
        if not self._calls.cancel(call_id):
            raise ApiError(404, "there is no such request, or it is over", "not_found")
        return JSONResponse({"id": call_id, "cancelled": True})

    async def file(self, name: str) -> Response:
        """GET /v1/images/files/{name}."""
        content = self._store.get(name)
        if content is None:
            raise ApiError(404, "there is no such picture, or it has expired; ask for b64_json to keep it", "not_found")
        return Response(content, media_type=media_type(name))

    async def _body(self, request: Request) -> bytes:
        limits = self._settings.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps pages of other sites out: browsers ask before they send JSON elsewhere.
            words = f"got the content type {kind[:80]!r}, expected application/json; name it in the header Content-Type"
            raise ApiError(415, words, "unsupported_content_type")
        try:
            body = await read_body(request, limits.body, limits.body_seconds)
        except TimeoutError:
            raise ApiError(400, f"the body was not there within {limits.body_seconds:g} s", "slow_body") from None
        if body is None:
            raise ApiError(413, f"the request is longer than {limits.body} bytes; shorten the prompt", "too_large")
        return body

    async def _collect(self, asked: ParsedRequest, request: Request) -> dict[str, object]:
        found: dict[int, ImageDone] = {}
        with self._calls.start(asked.images) as call:
            async for one in call.events():
                if one is not None and isinstance(one[1], Failed):
                    raise self._error(one[1].error, request)
                if one is not None and isinstance(one[1], ImageDone):
                    found[one[0]] = one[1]
        data = [await self._data(index, found[index], asked, request) for index in sorted(found)]
        answer = {"created": int(time.time()), "id": call.id, "model": self._card.id, **_of_all(asked)}
        return {**answer, "size": _size(found[0]), "data": data}

    async def _events(self, asked: ParsedRequest, request: Request) -> AsyncGenerator[bytes, None]:
        shown: Counter[int] = Counter()  # previews sent, by the index of their picture
        with self._calls.start(asked.images) as call:
            seeds = [image.seed for image in call.requests]
            yield _said("created", id=call.id, model=self._card.id, seeds=seeds, **_now())
            async for found in call.events(PAUSE):
                if found is None:
                    yield WAITING
                    continue
                index, happened = found
                if isinstance(happened, StepEvent):
                    yield await self._step(index, happened, asked, shown)
                elif isinstance(happened, ImageDone):
                    data = await self._data(index, happened, asked, request)
                    size = _size(happened)
                    yield _said("completed", index=index, **_now(), **_of_all(asked), size=size, **data)
                else:
                    body = self._error(happened.error, request).body()
                    yield event("error", {"type": "error", "index": index, **body})
        yield b"data: [DONE]\n\n"

    async def _step(self, index: int, step: StepEvent, asked: ParsedRequest, shown: Counter[int]) -> bytes:
        where = {"index": index, "step": step.step, "time": round(step.time, 6)}
        if step.preview is None:
            return _said("step", **where)
        picture = b64(await asyncio.to_thread(asked.encoding.encode, step.preview))
        number = shown[index]
        shown[index] += 1
        size = f"{step.preview.width}x{step.preview.height}"
        about = {"partial_image_index": number, **_now(), **_of_all(asked), "size": size}
        return _said("partial_image", **where, **about, b64_json=picture)

    async def _data(self, index: int, done: ImageDone, asked: ParsedRequest, request: Request) -> dict[str, object]:
        self._metrics.image(done)
        content = await asyncio.to_thread(asked.encoding.encode, done.image)
        place = {"b64_json": b64(content)} if asked.inline else {}
        if asked.by_url:
            name = self._store.put(content, asked.encoding.format)
            place["url"] = f"{request.base_url}v1/images/files/{name}"
        return {**place, **facts(asked, index, done)}

    def _error(self, error: Exception, request: Request) -> ApiError:
        known = api_error(error)
        if known is None:
            logger.error("%s %s", request.state.request_id, describe(error, self._settings.log_prompts))
        return known or internal_error(request.state.request_id)


def _said(what: str, **data: object) -> bytes:
    name = f"image_generation.{what}"
    return event(name, {"type": name, **data})


def _now() -> dict[str, object]:
    return {"created_at": int(time.time())}


def _of_all(asked: ParsedRequest) -> dict[str, object]:
    """What OpenAI's answers say of all pictures of a request."""
    said: dict[str, object] = {"output_format": asked.encoding.format, "background": "opaque"}
    return said if asked.user is None else {**said, "safety_identifier": asked.user}


def _size(done: ImageDone) -> str:
    return f"{done.image.width}x{done.image.height}"
