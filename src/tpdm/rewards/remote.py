"""A reward that another machine computes: the client of ``tpdm reward serve``, or of any server that speaks so.

    POST URL/score  {"prompts": ["..."], "images": ["base64 PNG"]}  ->  {"scores": [0.5]}

Python's own HTTP client serves: one kind of request needs no other dependency.
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
    """A redirect would carry the token to another host, and turn POST into GET."""

    def redirect_request(self, *args: Any) -> None:
        return None


class RemoteReward:
    """Scores from an HTTP server.

    Args:
        url: ``http://host:port`` or https, with or without a path.
        token: sent as ``Authorization: Bearer``; None sends none.
        timeout: seconds without an answer after which a try counts as failed, > 0.
        retries: further tries after a failed connection, a timeout, an answer that is cut off, or one of 500 and above
            (or 408 or 429: too slow, too many).
        backoff: seconds before the first retry; doubled before every further one.
        batch: images a request at most.
        limit: bytes of a request at most.

    Raises:
        RewardError: the URL is none.
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
                f"got a remote reward at '{parts.scheme}://{parts.hostname or ''}', expected remote:http://host:port "
                "without a name or password in it; give a token by reward.token_env"
            )
        self.url = url.rstrip("/")
        self.name = f"remote {self.url}"
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.batch, self.limit = batch, limit
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._open = urllib.request.build_opener(_NoRedirect).open

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of RGB images (B, 3, H, W) in [0, 1], which travel with 8 bits a channel.

        Raises:
            RewardError: no answer, a refusal, or an answer that holds no scores.
        """
        # Pictures that do not compress, in base64, and a long prompt: so many surely fit into a request.
        height, width = images_B3HW.shape[-2:]
        fitting = max(1, self.limit // (4 * height * width + 2**15))
        return in_batches(self._score, images_B3HW, prompts, min(self.batch, fitting))

    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        body = json.dumps({"prompts": list(prompts), "images": encode_images(images_B3HW)}).encode()
        if len(body) > self.limit:
            raise self._error(prompts, f"a request of {len(body)} bytes, {self.limit} are allowed")
        answer = self._ask(body, prompts)
        try:
            scores = json.loads(answer)["scores"]
            numbers = [float(score) for score in scores if not isinstance(score, bool | str)]
        except (ValueError, LookupError, TypeError) as error:
            raise self._error(prompts, 'no JSON object with "scores" in the answer') from error
        if len(numbers) != len(prompts):
            raise self._error(prompts, f"{len(numbers)} scores for {len(prompts)} images")
        return torch.tensor(numbers, dtype=torch.float32, device="cpu")

    def _ask(self, body: bytes, prompts: Sequence[str]) -> bytes:
        """The answer's body; tries again where that may help."""
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
                reason = f"no answer within {self.timeout:g} s"
            except (OSError, HTTPException) as error:  # URLError is an OSError
                timed_out = isinstance(error, urllib.error.URLError) and isinstance(error.reason, TimeoutError)
                said = " ".join(str(error).split()) or type(error).__name__
                reason = f"no answer within {self.timeout:g} s" if timed_out else f"no connection ({said})"
        raise self._error(prompts, f"{reason}, {self.retries + 1} times")

    def _read(self, response: Any, prompts: Sequence[str]) -> bytes:
        """The whole body, unless it is too long or trickles in for longer than the timeout."""
        end, chunks, size = time.monotonic() + self.timeout, [], 0
        while chunk := response.read1(65536):
            size += len(chunk)
            chunks.append(chunk)
            if size > MAX_ANSWER:
                raise self._error(prompts, f"an answer of more than {MAX_ANSWER} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        if response.length:  # bytes that were announced and did not come
            raise ConnectionError("the answer is cut off")
        return b"".join(chunks)

    def _error(self, prompts: Sequence[str], got: str) -> RewardError:
        return RewardError(
            f"reward '{self.name}': got {got} for {len(prompts)} images from {quoted(prompts[0])} on, expected one "
            "score per image; look at the server and start again"
        )


def _refusal(body: bytes) -> str:
    """What the server says of itself, on one line and shortened."""
    try:
        content = json.loads(body)
        said = content.get("error") or content.get("detail")
    except (ValueError, AttributeError):
        said = None
    return " ".join(str(said or "no reason given").split())[:300]
