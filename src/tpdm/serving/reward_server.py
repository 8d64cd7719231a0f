"""HTTP server of a reward, which ``tpdm.rewards.remote`` calls.

    GET  /health  ->  {"status": "ok"}
    POST /score   {"prompts": ["..."], "images": ["base64 PNG"]}  ->  {"name": "...", "scores": [0.5]}

The answer to a wrong request has a status of 400 or above and the body {"error": "one sentence"}.
"""

from __future__ import annotations

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
from tpdm.serving.http.errors import ApiError, check_token
from tpdm.serving.http.sockets import listen
from tpdm.serving.http.streaming import read_body

MAX_IMAGES = 1024
MAX_PROMPT = 20_000  # characters
MAX_CONCURRENT_REQUESTS = 32  # further requests get status 503, and the client retries them

logger = logging.getLogger("tpdm.serving")


class ScoreRequest(BaseModel):
    """Body of ``POST /score``: one prompt and one base64 PNG for each image."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompts: Annotated[list[Annotated[str, Field(max_length=MAX_PROMPT)]], Field(min_length=1, max_length=MAX_IMAGES)]
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)]


def make_app(reward: Reward, token: str | None = None, limit: int = MAX_BODY) -> FastAPI:
    """Returns the ASGI application.

    Args:
        reward: Reward to serve. It scores one request at a time.
        token: Token that the header ``Authorization: Bearer`` must contain. None accepts every request.
        limit: Maximum size of a request body in bytes.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = threading.Lock()

    def compute_scores(body: bytes) -> dict[str, object]:
        parsed = _parse(body)
        try:
            images_B3HW = decode_images(parsed.images)
        except ValueError as error:
            raise ApiError(422, f"{error}; send RGB PNGs of one size in base64", "invalid_value") from error
        with one_at_a_time:
            score_B = checked_scores(reward, images_B3HW, parsed.prompts)
        return {"name": reward.name, "scores": score_B.tolist()}

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(RewardError)
    async def failed(request: Request, error: RewardError) -> JSONResponse:
        logger.error("%s", error)
        return JSONResponse({"error": str(error)}, 500)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path[:80]} does not exist. Use GET /health or POST /score."
        return JSONResponse({"error": message}, error.status_code, error.headers)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        check_token(request.headers.get("authorization", ""), token)
        body = await read_body(request, limit)
        if body is None:
            raise ApiError(413, f"The request is longer than {limit} bytes. Send fewer images at once.", "too_large")
        return JSONResponse(await run_in_threadpool(compute_scores, body))

    return app


def serve(reward: Reward, sockets: Sequence[socket.socket], token: str | None = None) -> None:
    """Answers requests until it is interrupted.

    Args:
        reward: Reward to serve.
        sockets: Bound sockets of ``tpdm.serving.http.sockets.reserved``.
        token: Token of ``make_app``.

    Raises:
        ConfigError: Another program has begun to listen at the address.
    """
    import uvicorn

    app = make_app(reward, token)
    config = uvicorn.Config(app, log_level="info", access_log=False, limit_concurrency=MAX_CONCURRENT_REQUESTS)
    listen(sockets)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has stopped
        uvicorn.Server(config).run(list(sockets))


def _parse(body: bytes) -> ScoreRequest:
    try:
        parsed = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the request"
        raise ApiError(422, f"{field}: {first['msg']}; send one prompt for each image", "invalid_value") from error
    if len(parsed.prompts) != len(parsed.images):
        counts = f"{len(parsed.images)} images and {len(parsed.prompts)} prompts"
        raise ApiError(422, f"The request has {counts}. Send one prompt for each image.", "invalid_value")
    return parsed
