"""HTTP application: image generation in the shape of OpenAI's API, and a web page.

POST   /v1/images/generations      makes n images; with {"stream": true} the answer is a stream of events
DELETE /v1/requests/{id}           cancels a request
GET    /v1/images/files/{name}     returns an image that was requested by url
GET    /v1/models                  lists the served model and its aliases
GET    /healthz, /readyz, /metrics
GET    /openapi.json               returns the schema of the HTTP API
GET    /                           returns the web page

Every path with GET supports HEAD. OPTIONS returns the methods of a path.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tpdm import __version__
from tpdm.core.errors import TpdmError
from tpdm.serving.engine.interface import Engine
from tpdm.serving.http.errors import RETRY_SECONDS, ApiError, api_error, unknown_model
from tpdm.serving.http.handlers import Handlers
from tpdm.serving.http.image_store import ImageStore
from tpdm.serving.http.metrics import Metrics
from tpdm.serving.http.middleware import SecurityMiddleware
from tpdm.serving.http.protocol import GenerationRequest
from tpdm.serving.http.request_tracker import RequestTracker
from tpdm.serving.http.settings import ANY, ModelCard, Settings

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

GENERATION_BODY = {  # the handler parses the bytes itself, so FastAPI does not see the model
    "required": True,
    "content": {"application/json": {"schema": GenerationRequest.model_json_schema()}},
}

ELSEWHERE = ("/v1/images/edits", "/v1/images/variations")  # of OpenAI's API, not supported


def make_app(engine: Engine, card: ModelCard, settings: Settings | None = None) -> FastAPI:
    """Returns the ASGI application.

    Args:
        engine: Engine that makes the images.
        card: Public description of the model.
        settings: Limits, token and host names. None uses the defaults.
    """
    settings = settings or Settings()
    limits, metrics = settings.limits, Metrics(engine)
    store = ImageStore(limits.store_bytes, limits.store_seconds)
    handlers = Handlers(RequestTracker(engine), card, settings, metrics, store)
    app = FastAPI(title="tpdm", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(SecurityMiddleware, settings=settings, metrics=metrics)
    _answer_errors(app)

    app.post("/v1/images/generations", openapi_extra={"requestBody": GENERATION_BODY})(handlers.generate)
    app.delete("/v1/requests/{call_id}")(handlers.cancel)
    app.get("/v1/images/files/{name}")(handlers.file)
    for path in ELSEWHERE:
        app.post(path, include_in_schema=False)(_only_generations)
    _add_pages(app)
    _add_model(app, card, settings)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        if engine.status().accepting:
            return JSONResponse({"status": "ready"})
        raise ApiError(503, "The server is shutting down. Use another one.", "stopping", retry_after=RETRY_SECONDS)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=PROMETHEUS)

    return app


def _answer_errors(app: FastAPI) -> None:
    """Answers every error in the shape of OpenAI's API."""

    @app.exception_handler(ApiError)
    async def api(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(TpdmError)
    async def engine(request: Request, error: TpdmError) -> Response:
        known = api_error(error)
        if known is None:
            raise error
        return known.response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            allowed = _methods(headers)
            headers["Allow"] = allowed
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
            converted = ApiError(405, f"{request.method} is not supported here. Use one of {allowed}.", "bad_method")
        elif error.status_code == 404:
            converted = ApiError(404, "This path does not exist. See /openapi.json.", "not_found")
        else:
            converted = ApiError(error.status_code, "The request is not valid.", "bad_request")
        response = converted.response()
        response.headers.update(headers)
        return response


def _methods(headers: Mapping[str, str]) -> str:
    """Methods of a path: those of its route, HEAD if there is GET, and OPTIONS."""
    of_route = {word.strip() for word in headers.get("Allow", headers.get("allow", "")).split(",")} - {""}
    return ", ".join(sorted(of_route | ({"HEAD"} if "GET" in of_route else set()) | {"OPTIONS"}))


async def _only_generations(request: Request) -> Response:
    raise ApiError(
        400,
        f"{request.url.path} is not supported: this server makes images from texts only. Use /v1/images/generations.",
        "unsupported",
    )


def _add_pages(app: FastAPI) -> None:
    files = load_page()

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise ApiError(404, "This file does not exist.", "not_found")
        return Response(files[name].content, media_type=files[name].media_type)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return await static("index.html")


def _add_model(app: FastAPI, card: ModelCard, settings: Settings) -> None:
    limits = settings.limits
    side = min(limits.side, card.largest_side or limits.side)
    description = {
        "learned": card.learned,
        "gamma_conditioned": card.gamma_conditioned,
        "default_steps": card.default_steps,
        "examples": [{"name": name, "prompt": prompt} for name, prompt in card.examples],
        "limits": {"prompt": limits.prompt, "n": limits.images, "side": side, "steps": limits.steps},
    }
    names = [card.id, *(name for name in settings.aliases if name not in (ANY, card.id))]
    started = int(time.time())

    def entry(name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "tpdm",
            "root": card.id,
            "tpdm": description,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [entry(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, object]:
        if not settings.serves(name, card):
            raise unknown_model(name, card.id)
        return entry(name)


MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """File of the web page.

    Attributes:
        content: Content of the file.
        media_type: Media type of the file.
    """

    content: bytes
    media_type: str


def load_page() -> dict[str, StaticFile]:
    """Returns the files of the web page by name. ``index.html`` is the page itself."""
    folder = resources.files("tpdm.serving.http") / "static"
    return {
        entry.name: StaticFile(entry.read_bytes(), MEDIA_TYPES[f".{entry.name.rpartition('.')[2]}"])
        for entry in folder.iterdir()
    }
