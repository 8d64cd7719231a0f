"""Requests that should be refused: by a fuzzer of our own, and by schemathesis from the schema of the body."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx

PATH = "/v1/images/generations"
GOOD = {
    "prompt": "red circle",
    "seed": 3,
    "n": 1,
    "size": "64x64",
    "num_inference_steps": 1,
    "response_format": "b64_json",
}
FIELDS = (
    *GOOD,
    *("model", "quality", "gamma", "guidance_scale", "max_steps", "negative_prompt", "stream", "partial_images"),
    *("output_format", "background", "user", "style", "__proto__", "path", ""),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 1e308, -1e308, 2**63, 10**300, "", " ", "NaN", "\x00", "../../etc/passwd", "😀" * 50),
    *([], {}, [[]], {"a": {}}, "x" * 5000, "64x64x64", "-64x64", "99999x99999", "1x1", "png\n", "٣x٣"),
)
NAUGHTY = (b"NaN", b"Infinity", b"\xff", b"\\ud800", b"[" * 2000, b'{"a":' * 500, b"\x00", b"1e999", b"/*", b"'")
KINDS = ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded", "", "application/json; charset=x")


def mutated(dice: random.Random) -> bytes:
    """A good body with some of its bytes changed."""
    body = bytearray(json.dumps(GOOD).encode())
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(len(body))
        match dice.randrange(4):
            case 0:
                body[place] = dice.randrange(256)
            case 1:
                del body[place : place + dice.randint(1, 8)]
            case 2:
                body[place:place] = dice.choice(NAUGHTY)
            case _:
                body = body[: max(1, place)]
        if not body:
            break
    return bytes(body)


def misfilled(dice: random.Random) -> bytes:
    """A good body with wrong values, names and sizes."""
    body: dict[str, Any] = dict(GOOD)
    for _ in range(dice.randint(1, 3)):
        body[dice.choice(FIELDS)] = dice.choice(VALUES)
    if dice.random() < 0.2:
        body.pop("prompt", None)
    return json.dumps(body).encode("utf-8", "surrogatepass")


def fuzz(address: str, count: int, seed: int) -> Counter[str]:
    """Sends ``count`` bodies; how often each status came, and "closed" where a connection was closed for its bytes."""
    dice, found = random.Random(seed), Counter[str]()
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        for _ in range(count):
            roll = dice.random()
            if roll < 0.02:
                found[_raw(address, dice)] += 1
                continue
            kind = dice.choice(KINDS) if roll < 0.06 else "application/json"
            body = b"x" * dice.randrange(70_000, 200_000) if roll > 0.99 else dice.choice((mutated, misfilled))(dice)
            found[_status(lambda: client.post(PATH, content=body, headers={"content-type": kind}))] += 1  # noqa: B023
    return found


def _status(send: Callable[[], httpx.Response]) -> str:
    try:
        response = send()
    except httpx.TransportError:  # the server closes the connection if a body is too long
        return "closed"
    if response.status_code >= 400:
        assert response.json()["error"]["message"], "an error without a message"
        assert "Traceback" not in response.text
    return str(response.status_code)


def _raw(address: str, dice: random.Random) -> str:
    """Bytes that are no HTTP, or end too early."""
    host, _, port = address.removeprefix("http://").partition(":")
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode()
    sent = dice.choice(
        (
            b"\x16\x03\x01\x00\xf0",
            b"POST / HTTP/9.9\r\n\r\n",
            head + b"Content-Length: -1\r\n\r\n",
            head + b"Content-Length: 50\r\n\r\n{",
            head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
            head + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        )
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100)
        except OSError:
            return "closed"
    return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/") else "closed"


def explore(address: str, count: int, seed: int) -> Counter[str]:
    """At least ``count`` bodies that schemathesis makes to break the schema; how often each status came."""
    import hypothesis
    import schemathesis

    operation = schemathesis.openapi.from_dict(_openapi())[PATH]["POST"]
    strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    found = Counter[str]()
    client = httpx.Client(base_url=address, trust_env=False, timeout=60)

    def send(case: schemathesis.Case) -> None:
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode("utf-8", "surrogatepass")
        found[_status(lambda: client.post(PATH, content=body, headers={"content-type": "application/json"}))] += 1

    quiet = list(hypothesis.HealthCheck)
    with client:
        for block in _blocks(count):
            run = hypothesis.given(strategy)(send)
            run = hypothesis.settings(
                max_examples=block, database=None, deadline=None, suppress_health_check=quiet, print_blob=False
            )(run)
            hypothesis.seed(seed + found.total())(run)()
    return found


def _blocks(count: int) -> Iterator[int]:
    """Hypothesis keeps what it has tried: blocks bound its memory."""
    while count > 0:
        yield min(count, 500)
        count -= 500


def _openapi() -> dict[str, Any]:
    from tpdm.serving.http.protocol import GenerationRequest

    body = {"application/json": {"schema": GenerationRequest.model_json_schema()}}
    post = {"requestBody": {"required": True, "content": body}, "responses": {"200": {"description": "images"}}}
    return {"openapi": "3.1.0", "info": {"title": "tpdm", "version": "1"}, "paths": {PATH: {"post": post}}}
