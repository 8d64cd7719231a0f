"""The answers that need an engine: pictures at once or event by event, their end, their files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from tpdm.serve.calls import Call, Calls
from tpdm.serve.errors import ApiError, api_error, internal_error
from tpdm.serve.logs import describe
from tpdm.serve.metrics import Metrics
from tpdm.serve.requests import Failed, ImageDone, StepEvent
from tpdm.serve.settings import ModelCard, Settings
from tpdm.serve.store import ImageStore
from tpdm.serve.streaming import PAUSE, WAITING, EventStream, event, read_body, unless_gone
from tpdm.serve.wire import Asked, b64, facts, parse, png

log = logging.getLogger("tpdm.serve")


class Answers:
    """The handlers of the routes below /v1 that make, end and hand out pictures."""

    def __init__(self, calls: Calls, card: ModelCard, settings: Settings, metrics: Metrics, store: ImageStore) -> None:
        self._calls, self._card, self._settings = calls, card, settings
        self._metrics, self._store = metrics, store

    async def generate(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        asked = parse(await self._body(request), self._settings.limits, self._card)
        first = asked.images[0]
        shown = f" {first.prompt!r}" if self._settings.log_prompts else ""
        log.info("%s %d images of seed %d%s", request.state.request_id, len(asked.images), first.seed, shown)
        if not asked.stream:
            return JSONResponse(await unless_gone(request.receive, self._collect(asked, request)))
        events = self._events(asked, request)
        return EventStream(await anext(events), events)  # the first at once: a refusal is a status, not an event

    async def cancel(self, call_id: str) -> JSONResponse:
        """DELETE /v1/requests/{call_id}."""
        if not self._calls.cancel(call_id):
            raise ApiError(404, "there is no such request, or it is over", "not_found")
        return JSONResponse({"id": call_id, "cancelled": True})

    async def file(self, name: str) -> Response:
        """GET /v1/images/files/{name}."""
        content = self._store.get(name.removesuffix(".png"))
        if content is None:
            raise ApiError(404, "there is no such picture, or it has expired; ask for b64_json to keep it", "not_found")
        return Response(content, media_type="image/png")

    async def _body(self, request: Request) -> bytes:
        limits = self._settings.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps pages of other sites out: browsers ask before they send JSON elsewhere.
            raise ApiError(400, "expected the content type application/json", "bad_content_type")
        try:
            body = await read_body(request, limits.body, limits.body_seconds)
        except TimeoutError:
            raise ApiError(400, f"the body was not there within {limits.body_seconds:g} s", "slow_body") from None
        if body is None:
            raise ApiError(413, f"the request is longer than {limits.body} bytes; shorten the prompt", "too_large")
        return body

    async def _collect(self, asked: Asked, request: Request) -> dict[str, object]:
        found: dict[int, ImageDone] = {}
        with self._calls.start(asked.images) as call:
            async for one in call.events():
                if one is not None and isinstance(one[1], Failed):
                    raise self._error(one[1].error, request)
                if one is not None and isinstance(one[1], ImageDone):
                    found[one[0]] = one[1]
        data = [await self._data(call, index, found[index], asked, request) for index in sorted(found)]
        return {"created": int(time.time()), "id": call.id, "model": self._card.id, "data": data}

    async def _events(self, asked: Asked, request: Request) -> AsyncGenerator[bytes, None]:
        with self._calls.start(asked.images) as call:
            seeds = [image.seed for image in call.requests]
            opening = {"id": call.id, "created_at": int(time.time()), "model": self._card.id, "seeds": seeds}
            yield event("image_generation.created", {"type": "image_generation.created", **opening})
            async for found in call.events(PAUSE):
                yield WAITING if found is None else await self._event(call, *found, asked, request)
        yield b"data: [DONE]\n\n"

    async def _event(
        self, call: Call, index: int, happened: StepEvent | ImageDone | Failed, asked: Asked, request: Request
    ) -> bytes:
        if isinstance(happened, Failed):
            return event("error", {"type": "error", "index": index, **self._error(happened.error, request).body()})
        if isinstance(happened, ImageDone):
            name = "image_generation.completed"
            return event(
                name, {"type": name, "index": index, **await self._data(call, index, happened, asked, request)}
            )
        facts = {"index": index, "step": happened.step, "time": round(happened.time, 6)}
        if happened.preview is None:
            return event("image_generation.step", {"type": "image_generation.step", **facts})
        name = "image_generation.partial_image"
        picture = b64(await asyncio.to_thread(png, happened.preview))
        return event(name, {"type": name, **facts, "partial_image_index": happened.step - 1, "b64_json": picture})

    async def _data(self, call: Call, index: int, done: ImageDone, asked: Asked, request: Request) -> dict[str, object]:
        self._metrics.image(done)
        content = await asyncio.to_thread(png, done.image)
        if asked.by_url:
            place = {"url": f"{request.base_url}v1/images/files/{self._store.put(content)}.png"}
        else:
            place = {"b64_json": b64(content)}
        return {**place, **facts(call.requests[index], done)}

    def _error(self, error: Exception, request: Request) -> ApiError:
        known = api_error(error)
        if known is None:
            log.error("%s %s", request.state.request_id, describe(error, self._settings.log_prompts))
        return known or internal_error(request.state.request_id)
