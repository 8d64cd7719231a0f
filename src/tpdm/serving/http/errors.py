"""HTTP errors in the shape of OpenAI's API."""

from __future__ import annotations

import hmac
import math

from starlette.responses import JSONResponse

from tpdm.serving.engine.interface import DeadlineExceeded, EngineStopped, QueueFull, RequestCancelled, RequestRefused

RETRY_SECONDS = 2.0  # default of ``Retry-After``
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """HTTP error.

    Args:
        status: HTTP status, 400 or above.
        message: Message for people, on one line.
        code: Identifier for programs.
        param: Field of the request that is wrong. None if the error concerns no field.
        retry_after: Seconds after which the client should try again. None adds no header.

    Example:
        >>> ApiError(422, "n is 0. It must be at least 1.", "invalid_value", "n").body()["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, object]:
        """Returns the JSON body that OpenAI's clients read."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the response, with ``Retry-After`` in whole seconds if it is set."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def api_error(error: Exception) -> ApiError | None:
    """Returns the HTTP error for an error of the engine. None if it is an internal error."""
    if isinstance(error, RequestRefused):
        return ApiError(422, str(error), "unsupported")
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), "queue_full", retry_after=error.retry_after)
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), "stopping", retry_after=RETRY_SECONDS)
    if isinstance(error, DeadlineExceeded):
        return ApiError(503, str(error), "deadline_exceeded", retry_after=RETRY_SECONDS)
    if isinstance(error, RequestCancelled):
        return ApiError(400, str(error), "cancelled")
    return None


def check_token(header: str, token: str | None) -> None:
    """Checks the header ``Authorization`` of a request.

    Args:
        header: Value of the header, empty if it is missing.
        token: Expected token. None accepts every header.

    Raises:
        ApiError: 401, the token is missing or wrong.
    """
    # In constant time: the time of the answer must not depend on how much of a guess is right.
    if token is not None and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
        message = "The token is missing or wrong. Send it in the header Authorization: Bearer."
        raise ApiError(401, message, "invalid_api_key")


def unknown_model(name: str, served: str) -> ApiError:
    """Returns the error of a request for a model that is not served.

    Args:
        name: Name in the request.
        served: Name of the served model.
    """
    shown = name[:80]
    message = f"model is {shown!r}. Use {served!r}, or start the server with --model-alias {shown!r}."
    return ApiError(404, message, "model_not_found", "model")


def internal_error(request_id: str) -> ApiError:
    """Returns the error of an internal failure. It contains only the id under which the log describes the failure."""
    return ApiError(500, f"The request failed. The log of the server gives the reason under {request_id}.", "internal")
