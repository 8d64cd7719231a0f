"""Middleware of every request: checks host and token, sets headers, writes the log, and hides internal errors."""

from __future__ import annotations

import logging
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpdm.serving.http.errors import ApiError, check_token, internal_error
from tpdm.serving.http.metrics import Metrics
from tpdm.serving.http.settings import Settings
from tpdm.serving.process import describe

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Health checks have no token, and use the address of the machine instead of a name. The page asks for the token. The
# names of images cannot be guessed.
HEALTH = ("/healthz", "/readyz")
OPEN = ("/", *HEALTH)
OPEN_FOLDERS = ("/static/", "/v1/images/files/")

CLIENT_DISCONNECTED = 499  # status of nginx for the log; it is not sent

logger = logging.getLogger("tpdm.serving")


class SecurityMiddleware:
    """ASGI middleware around the application.

    Args:
        app: The application.
        settings: Token, host names and logging of the server.
        metrics: Metrics that count the responses.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection. Called by the ASGI server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        request_id = scope.setdefault("state", {})["request_id"] = f"req-{secrets.token_hex(8)}"
        head = scope["method"] == "HEAD"
        routed = {**scope, "method": "GET"} if head else scope  # HEAD is GET without the body

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "X-Request-Id": request_id}.items():
                    headers.setdefault(name, value)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
            await self._app(routed, receive, send_guarded)
        except ApiError as error:
            await error.response()(scope, receive, send_guarded)
        except ClientDisconnect:
            status = CLIENT_DISCONNECTED
        except Exception as error:
            logger.error("%s %s", request_id, describe(error, self._settings.log_prompts))
            if status == 0:
                await internal_error(request_id).response()(scope, receive, send_guarded)
        finally:
            route = getattr(routed.get("route"), "path", "other")
            self._metrics.response(route, status)
            logger.info("%s %s %s %d %.3fs", request_id, scope["method"], route, status, time.monotonic() - started)

    def _check(self, path: str, headers: Headers) -> None:
        hosts = self._settings.hosts
        if path not in HEALTH and hosts is not None and _host(headers.get("host", "")) not in hosts:
            raise ApiError(
                400,
                f"The Host header must be one of {', '.join(hosts)}. Add other names with --allowed-host.",
                "bad_host",
            )
        if path not in OPEN and not path.startswith(OPEN_FOLDERS):
            check_token(headers.get("authorization", ""), self._settings.token)


def _host(header: str) -> str:
    """Host name without port, and without the brackets of an IPv6 address."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
