"""Pictures over HTTP, as OpenAI's clients ask for them.

POST   /v1/images/generations      one call, n pictures; {"stream": true} sends events while they are made
DELETE /v1/requests/{id}           ends a call
GET    /v1/images/files/{name}     a picture that was asked for by url
GET    /v1/models                  what is served here
GET    /healthz, /readyz, /metrics
GET    /openapi.json               schema of the HTTP API
GET    /                           a page for people

HEAD is answered wherever GET is, OPTIONS with the methods of an address.
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

ELSEWHERE = ("/v1/images/edits", "/v1/images/variations")  # of OpenAI's, and not of this server


def make_app(engine: Engine, card: ModelCard, settings: Settings | None = None) -> FastAPI:
    """The application.

    Args:
        engine: makes the pictures.
        card: what clients learn of the model.
        settings: limits, token, names of the server.
    """
    settings = settings or Settings()
    limits, metrics = settings.limits, Metrics(engine)
    store = ImageStore(limits.store_bytes, limits.store_seconds)
    answers = Handlers(RequestTracker(engine), card, settings, metrics, store)
    app = FastAPI(title="tpdm", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(SecurityMiddleware, settings=settings, metrics=metrics)
    _answer_errors(app)

    app.post("/v1/images/generations", openapi_extra={"requestBody": GENERATION_BODY})(answers.generate)
    app.delete("/v1/requests/{call_id}")(answers.cancel)
    app.get("/v1/images/files/{name}")(answers.file)
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
        raise ApiError(503, "the server is stopping; ask another one", "stopping", retry_after=RETRY_SECONDS)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=PROMETHEUS)

    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(TpdmError)
    async def engine(request: Request, error: TpdmError) -> Response:
        found = api_error(error)
        if found is None:
            raise error
        return found.response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            allowed = _methods(headers)
            headers["Allow"] = allowed
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
            answer = ApiError(405, f"got {request.method}, expected one of {allowed} at this address", "bad_method")
        else:
            words = {404: "there is nothing at this address; see /v1/models"}
            sentence = words.get(error.status_code, "the request cannot be answered")
            answer = ApiError(error.status_code, sentence, "not_found" if error.status_code == 404 else "bad_request")
        response = answer.response()
        response.headers.update(headers)
        return response


def _methods(headers: Mapping[str, str]) -> str:
    """The methods of an address: those of its route, and what every address answers."""
    of_route = {word.strip() for word in headers.get("Allow", headers.get("allow", "")).split(",")} - {""}
    return ", ".join(sorted(of_route | ({"HEAD"} if "GET" in of_route else set()) | {"OPTIONS"}))


async def _only_generations(request: Request) -> Response:
    raise ApiError(
        400,
        f"got a request to {request.url.path}, expected one to /v1/images/generations: this server draws from texts "
        "alone",
        "unsupported",
    )


def _add_pages(app: FastAPI) -> None:
    files = load_page()

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise ApiError(404, "there is no such file", "not_found")
        return Response(files[name].content, media_type=files[name].kind)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return await static("index.html")


def _add_model(app: FastAPI, card: ModelCard, settings: Settings) -> None:
    limits = settings.limits
    side = min(limits.side, card.largest_side or limits.side)
    about = {
        "learned": card.learned,
        "dial": card.gamma_conditioned,
        "default_steps": card.default_steps,
        "examples": [{"name": name, "prompt": prompt} for name, prompt in card.examples],
        "limits": {"prompt": limits.prompt, "n": limits.images, "side": side, "steps": limits.steps},
    }
    names = [card.id, *(name for name in settings.aliases if name not in (ANY, card.id))]
    started = int(time.time())

    def entry(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": started, "owned_by": "tpdm", "root": card.id, "tpdm": about}

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [entry(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, object]:
        if not settings.serves(name, card):
            raise unknown_model(name, card.id)
        return entry(name)


KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """A file and its media type."""

    content: bytes
    kind: str


def load_page() -> dict[str, StaticFile]:
    """All files of the page by name; ``index.html`` is the page itself."""
    folder = resources.files("tpdm.serving.http") / "static"
    return {
        entry.name: StaticFile(entry.read_bytes(), KINDS[f".{entry.name.rpartition('.')[2]}"])
        for entry in folder.iterdir()
    }
