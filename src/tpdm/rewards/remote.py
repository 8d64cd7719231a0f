"""A reward on another machine: the client of ``tpdm reward serve`` and of servers with the same protocol.

    POST URL/score  {"prompts": ["..."], "images": ["base64 PNG"]}  ->  {"scores": [0.5]}

The client uses the HTTP module of the standard library, so that it needs no dependency.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from tpdm.core.errors import RewardError
from tpdm.rewards.base import in_batches, quoted
from tpdm.rewards.remote_protocol import MAX_ANSWER, MAX_BODY, encode_images


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuse redirects. A redirect would send the token to another host, and change POST to GET."""

    def redirect_request(self, *args: Any) -> None:
        return None


class RemoteReward:
    """A reward that an HTTP server computes.

    Args:
        url: ``http://host:port`` or ``https://host:port``, optionally with a path.
        token: Bearer token for the header ``Authorization``. None sends no header.
        timeout: Seconds to wait for a response, > 0.
        retries: Maximum number of retries, >= 0. A request is retried after a failed connection, a timeout, an
            incomplete response, or a status of 408, 429 or 500 and above.
        backoff: Seconds before the first retry. They double before every further retry.
        batch: Maximum number of images per request, >= 1.
        limit: Maximum size of a request in bytes.

    Raises:
        RewardError: If the URL is invalid.

    Example:
        >>> RemoteReward("http://127.0.0.1:8080/", batch=8).name
        'remote http://127.0.0.1:8080'
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        batch: int = 16,
        limit: int = MAX_BODY,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise RewardError(
                f"reward.name is a remote reward at '{parts.scheme}://{parts.hostname or ''}'. It must be "
                "remote:http://host:port without a user name or password. Use reward.token_env for a token."
            )
        self.url = url.rstrip("/")
        self.name = f"remote {self.url}"
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.batch, self.limit = batch, limit
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._open = urllib.request.build_opener(_NoRedirect).open

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch of images. They are sent with 8 bits per channel.

        Args:
            images_B3HW: RGB images (B, 3, H, W) in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Scores (B,) in fp32 on the CPU.

        Raises:
            RewardError: If the server does not respond, refuses the request, or returns no scores.
        """
        # This number fits even if images do not compress: 4 base64 characters per pixel, and 32 KiB per prompt.
        height, width = images_B3HW.shape[-2:]
        fitting = max(1, self.limit // (4 * height * width + 2**15))
        return in_batches(self._score, images_B3HW, prompts, min(self.batch, fitting))

    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        body = json.dumps({"prompts": list(prompts), "images": encode_images(images_B3HW)}).encode()
        if len(body) > self.limit:
            raise self._error(prompts, f"the request has {len(body)} bytes, the maximum is {self.limit}")
        answer = self._ask(body, prompts)
        try:
            scores = json.loads(answer)["scores"]
            numbers = [float(score) for score in scores if not isinstance(score, bool | str)]
        except (ValueError, LookupError, TypeError) as error:
            raise self._error(prompts, 'the response is not a JSON object with "scores"') from error
        if len(numbers) != len(prompts):
            raise self._error(prompts, f"the response has {len(numbers)} scores")
        return torch.tensor(numbers, dtype=torch.float32, device="cpu")

    def _ask(self, body: bytes, prompts: Sequence[str]) -> bytes:
        """Return the body of the response. Retry if that may help."""
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            request = urllib.request.Request(f"{self.url}/score", data=body, headers=self._headers, method="POST")
            try:
                with self._open(request, timeout=self.timeout) as response:
                    return self._read(response, prompts)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"status {error.code} ({_refusal(error.read(MAX_ANSWER))})"
                if error.code < 500 and error.code not in (408, 429):
                    raise self._error(prompts, reason) from error
            except TimeoutError:
                reason = f"no response within {self.timeout:g} s"
            except (OSError, HTTPException) as error:  # URLError is an OSError
                timed_out = isinstance(error, urllib.error.URLError) and isinstance(error.reason, TimeoutError)
                cause = " ".join(str(error).split()) or type(error).__name__
                reason = f"no response within {self.timeout:g} s" if timed_out else f"no connection ({cause})"
        raise self._error(prompts, f"{reason}, {self.retries + 1} times")

    def _read(self, response: Any, prompts: Sequence[str]) -> bytes:
        """Return the body. Raise if it is too long, or if reading it takes longer than the timeout."""
        end, chunks, size = time.monotonic() + self.timeout, [], 0
        while chunk := response.read1(65536):
            size += len(chunk)
            chunks.append(chunk)
            if size > MAX_ANSWER:
                raise self._error(prompts, f"the response has more than {MAX_ANSWER} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        if response.length:  # fewer bytes than the header announced
            raise ConnectionError("the response is incomplete")
        return b"".join(chunks)

    def _error(self, prompts: Sequence[str], reason: str) -> RewardError:
        return RewardError(
            f"Reward '{self.name}' failed for {len(prompts)} images, the first of which is {quoted(prompts[0])}: "
            f"{reason}. The server must return one score per image. Check the server and start again."
        )


def _refusal(body: bytes) -> str:
    """Return the server's error message on one line, at most 300 characters."""
    try:
        content = json.loads(body)
        message = content.get("error") or content.get("detail")
    except (ValueError, AttributeError):
        message = None
    return " ".join(str(message or "no reason given").split())[:300]
