"""A reward behind HTTP: the server that ``tpdm.rewards.remote`` asks.

    GET  /health  ->  {"status": "ok"}
    POST /score   {"prompts": ["..."], "images": ["base64 PNG"]}  ->  {"name": "...", "scores": [0.5]}

Whatever is wrong with a request is answered by a status of 400 and above and {"error": "one sentence"}.
"""

from __future__ import annotations

import hmac
import logging
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from tpdm.core.errors import RewardError
from tpdm.rewards.base import Reward, checked_scores
from tpdm.rewards.remote_protocol import MAX_BODY, decode_images
from tpdm.serving.http.sockets import listen

MAX_IMAGES = 1024
MAX_PROMPT = 20_000  # characters
REQUESTS_AT_ONCE = 32  # more are answered 503, which the client tries again

logger = logging.getLogger("tpdm.serving")


class ScoreRequest(BaseModel):
    """One prompt and one base64 PNG for each image."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompts: Annotated[list[Annotated[str, Field(max_length=MAX_PROMPT)]], Field(min_length=1, max_length=MAX_IMAGES)]
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)]


class _RefusedError(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def make_app(reward: Reward, token: str | None = None, limit: int = MAX_BODY) -> FastAPI:
    """The application.

    Args:
        reward: scores one request at a time.
        token: that ``Authorization: Bearer`` must carry; None asks for none.
        limit: bytes of a request at most.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = threading.Lock()

    def scores(body: bytes) -> dict[str, object]:
        asked = _parse(body)
        try:
            images_B3HW = decode_images(asked.images)
        except ValueError as error:
            raise _RefusedError(422, f"{error}; send RGB PNGs of one size in base64") from error
        with one_at_a_time:
            score_B = checked_scores(reward, images_B3HW, asked.prompts)
        return {"name": reward.name, "scores": score_B.tolist()}

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        words = f"got {request.method} {request.url.path[:80]}, expected GET /health or POST /score"
        return JSONResponse({"error": words}, error.status_code, error.headers)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        try:
            _check_token(request.headers.get("authorization", ""), token)
            return JSONResponse(await run_in_threadpool(scores, await _read(request, limit)))
        except _RefusedError as error:
            return JSONResponse({"error": str(error)}, error.status)
        except RewardError as error:
            logger.error("%s", error)
            return JSONResponse({"error": str(error)}, 500)

    return app


def serve(reward: Reward, sockets: Sequence[socket.socket], token: str | None = None) -> None:
    """Answers requests until it is interrupted.

    Args:
        reward: to serve.
        sockets: bound to where to listen, see ``tpdm.serving.http.sockets.reserved``.
        token: see ``make_app``.

    Raises:
        ConfigError: another program has begun to listen there.
    """
    import uvicorn

    app = make_app(reward, token)
    config = uvicorn.Config(app, log_level="info", access_log=False, limit_concurrency=REQUESTS_AT_ONCE)
    listen(sockets)
    with suppress(KeyboardInterrupt):  # which uvicorn passes on when it has stopped
        uvicorn.Server(config).run(list(sockets))


def _check_token(header: str, token: str | None) -> None:
    # In constant time: how long a refusal takes must not say how much of a guess was right.
    if token is not None and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
        raise _RefusedError(401, "no or a wrong token; send it as Authorization: Bearer")


async def _read(request: Request, limit: int) -> bytes:
    """The body, which is not read to its end where it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _RefusedError(413, f"the request is longer than {limit} bytes; send fewer images at once")
    return bytes(body)


def _parse(body: bytes) -> ScoreRequest:
    try:
        asked = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the request"
        raise _RefusedError(422, f"{place}: {first['msg']}; send one prompt for each image") from error
    if len(asked.prompts) != len(asked.images):
        raise _RefusedError(422, f"got {len(asked.images)} images for {len(asked.prompts)} prompts; send one of each")
    return asked
