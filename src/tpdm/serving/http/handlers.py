"""Handlers of the routes that make, cancel and return images."""

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
from tpdm.serving.http.streaming import (
    KEEP_ALIVE,
    KEEP_ALIVE_SECONDS,
    EventStream,
    cancel_on_disconnect,
    event,
    read_body,
)
from tpdm.serving.process import describe

logger = logging.getLogger("tpdm.serving")


class Handlers:
    """Handlers of the routes below ``/v1/images`` and ``/v1/requests``.

    Args:
        tracker: Requests that are being answered.
        card: Public description of the model.
        settings: Settings of the server.
        metrics: Metrics of the server.
        store: Store of images that are requested by url.
    """

    def __init__(
        self, tracker: RequestTracker, card: ModelCard, settings: Settings, metrics: Metrics, store: ImageStore
    ) -> None:
        self._tracker, self._card, self._settings = tracker, card, settings
        self._metrics, self._store = metrics, store

    async def generate(self, request: Request) -> Response:
        """Handles POST /v1/images/generations."""
        parsed = parse(await self._body(request), self._settings, self._card)
        first = parsed.images[0]
        shown = f" {first.prompt!r}" if self._settings.log_prompts else ""
        logger.info("%s %d images of seed %d%s", request.state.request_id, len(parsed.images), first.seed, shown)
        if not parsed.stream:
            return JSONResponse(await cancel_on_disconnect(request.receive, self._collect(parsed, request)))
        events = self._events(parsed, request)
        return EventStream(await anext(events), events)  # before the headers: a refusal is a status, not an event

    async def cancel(self, call_id: str) -> JSONResponse:
        """Handles DELETE /v1/requests/{call_id}."""
        if not self._tracker.cancel(call_id):
            raise ApiError(404, "This request does not exist or has ended.", "not_found")
        return JSONResponse({"id": call_id, "cancelled": True})

    async def file(self, name: str) -> Response:
        """Handles GET /v1/images/files/{name}."""
        content = self._store.get(name)
        if content is None:
            raise ApiError(404, "This image does not exist or has expired. Use b64_json to keep images.", "not_found")
        return Response(content, media_type=media_type(name))

    async def _body(self, request: Request) -> bytes:
        limits = self._settings.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # This also keeps out pages of other sites: for JSON, browsers send a preflight request first.
            message = f"The content type is {kind[:80]!r}. Send the header Content-Type: application/json."
            raise ApiError(415, message, "unsupported_content_type")
        try:
            body = await read_body(request, limits.body, limits.body_seconds)
        except TimeoutError:
            message = f"The body did not arrive within {limits.body_seconds:g} s. Send the request again."
            raise ApiError(400, message, "slow_body") from None
        if body is None:
            raise ApiError(413, f"The body is longer than {limits.body} bytes. Shorten the prompt.", "too_large")
        return body

    async def _collect(self, parsed: ParsedRequest, request: Request) -> dict[str, object]:
        images: dict[int, ImageDone] = {}
        with self._tracker.start(parsed.images) as handle:
            async for item in handle.events():
                if item is not None and isinstance(item[1], Failed):
                    raise self._error(item[1].error, request)
                if item is not None and isinstance(item[1], ImageDone):
                    images[item[0]] = item[1]
        data = [await self._data(index, images[index], parsed, request) for index in sorted(images)]
        answer = {"created": int(time.time()), "id": handle.id, "model": self._card.id, **_common(parsed)}
        return {**answer, "size": _size(images[0]), "data": data}

    async def _events(self, parsed: ParsedRequest, request: Request) -> AsyncGenerator[bytes, None]:
        num_previews: Counter[int] = Counter()  # by index of the image
        with self._tracker.start(parsed.images) as handle:
            seeds = [image.seed for image in handle.requests]
            yield _event("created", id=handle.id, model=self._card.id, seeds=seeds, **_now())
            async for item in handle.events(KEEP_ALIVE_SECONDS):
                if item is None:
                    yield KEEP_ALIVE
                    continue
                index, image_event = item
                if isinstance(image_event, StepEvent):
                    yield await self._step(index, image_event, parsed, num_previews)
                elif isinstance(image_event, ImageDone):
                    data = await self._data(index, image_event, parsed, request)
                    size = _size(image_event)
                    yield _event("completed", index=index, **_now(), **_common(parsed), size=size, **data)
                else:
                    body = self._error(image_event.error, request).body()
                    yield event("error", {"type": "error", "index": index, **body})
        yield b"data: [DONE]\n\n"

    async def _step(self, index: int, step: StepEvent, parsed: ParsedRequest, num_previews: Counter[int]) -> bytes:
        step_data = {"index": index, "step": step.step, "time": round(step.time, 6)}
        if step.preview is None:
            return _event("step", **step_data)
        content = b64(await asyncio.to_thread(parsed.encoding.encode, step.preview))
        number = num_previews[index]
        num_previews[index] += 1
        size = f"{step.preview.width}x{step.preview.height}"
        preview_data = {"partial_image_index": number, **_now(), **_common(parsed), "size": size}
        return _event("partial_image", **step_data, **preview_data, b64_json=content)

    async def _data(self, index: int, done: ImageDone, parsed: ParsedRequest, request: Request) -> dict[str, object]:
        self._metrics.image(done)
        content = await asyncio.to_thread(parsed.encoding.encode, done.image)
        location = {"b64_json": b64(content)} if parsed.inline else {}
        if parsed.by_url:
            name = self._store.put(content, parsed.encoding.format)
            location["url"] = f"{request.base_url}v1/images/files/{name}"
        return {**location, **facts(parsed, index, done)}

    def _error(self, error: Exception, request: Request) -> ApiError:
        known = api_error(error)
        if known is None:
            logger.error("%s %s", request.state.request_id, describe(error, self._settings.log_prompts))
        return known or internal_error(request.state.request_id)


def _event(kind: str, **data: object) -> bytes:
    name = f"image_generation.{kind}"
    return event(name, {"type": name, **data})


def _now() -> dict[str, object]:
    return {"created_at": int(time.time())}


def _common(parsed: ParsedRequest) -> dict[str, object]:
    """Fields of OpenAI's answers that are the same for all images of a request."""
    data: dict[str, object] = {"output_format": parsed.encoding.format, "background": "opaque"}
    return data if parsed.user is None else {**data, "safety_identifier": parsed.user}


def _size(done: ImageDone) -> str:
    return f"{done.image.width}x{done.image.height}"
