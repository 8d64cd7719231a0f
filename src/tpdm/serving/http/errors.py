"""What is wrong with a request, as a status and one sentence in OpenAI's shape."""

from __future__ import annotations

import hmac
import math

from starlette.responses import JSONResponse

from tpdm.serving.engine.interface import DeadlineExceeded, EngineStopped, QueueFull, RequestCancelled, RequestRefused

RETRY_SECONDS = 2.0  # where nobody knows better
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is no success.

    Args:
        status: of HTTP.
        message: one sentence.
        code: a word for programs.
        param: the field that is wrong.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, object]:
        """The JSON that OpenAI's clients read."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer, with ``Retry-After`` in whole seconds where there is one."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def api_error(error: Exception) -> ApiError | None:
    """The answer to what an engine raises or reports; None where it is a mistake of ours."""
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
    """A request for another model than the one that is served."""
    shown = name[:80]
    words = f"model: got {shown!r}, expected {served!r}: ask for that, or start the server with --model-alias {shown!r}"
    return ApiError(404, words, "model_not_found", "model")


def internal_error(request_id: str) -> ApiError:
    """A mistake of ours: the client learns a number to ask by, the log has the rest."""
    return ApiError(500, f"the picture could not be made; the server's log says why under {request_id}", "internal")
