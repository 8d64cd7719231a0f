"""Refusals with their messages, and what the server does not disclose."""

from __future__ import annotations

import json
import logging
import socket

import pytest

from tests.serving.conftest import CARD, Client, serving, until
from tests.serving.fake import FakeEngine
from tpdm.serving.http.image_store import ImageStore
from tpdm.serving.http.middleware import CSP
from tpdm.serving.http.settings import LOOPBACK, Limits, Settings

SMALL = Limits(prompt=20, images=3, side=128, steps=30, body=500, body_seconds=0.3)


@pytest.fixture(scope="module")
def bounded():
    with serving(FakeEngine(), CARD, Settings(SMALL)) as address, Client(address) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"prompt": ""}, 422, "prompt: String should have at least 1 character"),
        ({"prompt": "  "}, 422, "prompt is empty"),
        ({"prompt": 3}, 422, "prompt: Input should be a valid string"),
        ({"prompt": "x" * 21}, 422, "prompt has 21 characters. It can have at most 20."),
        ({"negative_prompt": "x" * 21}, 422, "negative_prompt has 21 characters"),
        ({"n": 0}, 422, "n: Input should be greater than or equal to 1"),
        ({"n": 4}, 422, "n is 4. It must be at most 3."),
        ({"n": True}, 422, "n: Input should be a valid integer"),
        ({"n": "2"}, 422, "n: Input should be a valid integer"),
        ({"size": "64"}, 422, "size: String should match pattern"),
        ({"size": "0x64"}, 422, "size: String should match pattern"),
        ({"size": "64x64\n"}, 422, "size: String should match pattern"),
        ({"size": "64x192"}, 422, "size is 64x192. Both sides must be at most 128 pixels."),
        ({"seed": -1}, 422, "seed: Input should be greater than or equal to 0"),
        ({"seed": 2**53}, 422, "seed: Input should be less than"),
        ({"seed": 10**400}, 422, "seed: "),
        ({"quality": 1.5}, 422, "quality: "),
        ({"quality": "superb"}, 422, "quality: "),
        ({"gamma": 1.0}, 422, "gamma: Input should be less than 1"),
        ({"guidance_scale": -1}, 422, "guidance_scale: "),
        ({"max_steps": 31}, 422, "max_steps is 31. It must be at most 30."),
        ({"num_inference_steps": 10**9}, 422, "num_inference_steps is 1000000000"),
        (
            {"num_inference_steps": 4, "max_steps": 4},
            422,
            "max_steps and num_inference_steps exclude each other",
        ),
        ({"fixed_steps": 4, "num_inference_steps": 4}, 422, "fixed_steps is the old name of num_inference_steps"),
        ({"fixed_steps": 31}, 422, "num_inference_steps is 31. It must be at most 30."),
        ({"response_format": "file"}, 422, "response_format: "),
        ({"output_format": "jpg"}, 422, "output_format: Input should be 'png', 'jpeg' or 'webp'"),
        ({"path": "/etc/passwd"}, 422, "Unknown fields: 'path'. Leave them out. The known fields are prompt, "),
        ({"prompt": "refuse"}, 422, "an option that the pipeline lacks"),
        ({"model": "dall-e-3"}, 404, "model is 'dall-e-3'. Use 'tinyworld'"),
    ],
)
def test_what_is_refused(bounded, fields, status, words):
    answer = bounded.ask(**fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "a", "guidance_scale": NaN}', 400),
        (b"[" * 400, 400),
        (b'{"prompt": "' + b"x" * 600 + b'"}', 413),
    ],
)
def test_invalid_bodies_are_refused(bounded, body, status):
    answer = bounded.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_forms_of_other_sites_are_refused(bounded):
    """A page of another site can send text and forms without a preflight request, but no JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = bounded.post("/v1/images/generations", content=b'{"prompt": "a"}', headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_content_type")
    assert "access-control-allow-origin" not in bounded.options("/v1/images/generations").headers


def test_a_slow_and_a_long_body_are_refused(bounded):
    host, port = bounded.base_url.host, bounded.base_url.port
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, port), timeout=60) as slow:
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = slow.recv(10_000)
        while b"error" not in answer and (more := slow.recv(10_000)):  # older uvicorn sends head and body apart
            answer += more
        assert b"The body did not arrive within 0.3 s" in answer
    with socket.create_connection((host, port), timeout=60) as long:
        long.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode() + b"x" * 2000)
        assert b" 413 " in long.recv(10_000)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/images/generations", 405),
        ("GET", "/static/..%2f..%2fapp.py", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/nothing.css", 404),
        ("GET", "/v1/images/files/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/other", 404),
        ("DELETE", "/v1/requests/img-guess", 404),
        ("GET", "/docs", 404),
    ],
)
def test_unknown_paths(bounded, method, path, status):
    answer = bounded.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_full_queue_sends_retry_after():
    engine = FakeEngine(slots=1, queue_limit=0)
    with serving(engine) as address, Client(address) as client, client.events("endless") as source:
        next(source)
        answer = client.ask()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_draining_server_is_not_ready_and_refuses_requests(client, engine):
    assert client.get("/readyz").status_code == 200
    engine.drain(1)
    for answer in (client.get("/readyz"), client.ask()):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200


def test_internal_errors_are_not_shown(client, caplog):
    with caplog.at_level(logging.INFO, "tpdm.serving"):
        answer = client.ask("explode, darling")
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    assert "division" not in answer.text.lower()
    request_id = answer.headers["x-request-id"]
    assert request_id in answer.json()["error"]["message"]
    assert f"{request_id} ZeroDivisionError" in caplog.text
    assert "darling" not in caplog.text


def test_internal_errors_outside_the_engine_are_not_shown(client, engine, monkeypatch, caplog):
    words = "".join(["sec", "ret"])  # not in the frames, which show this source

    def broken():
        raise KeyError(words)

    monkeypatch.setattr(engine, "status", broken)
    answer = client.get("/readyz")
    assert answer.status_code == 500
    assert words not in answer.text + caplog.text
    assert "KeyError" in caplog.text


def test_prompts_are_logged_only_if_enabled(engine, caplog):
    caplog.set_level(logging.INFO, "tpdm.serving")
    with serving(engine, CARD, Settings(log_prompts=True)) as address, Client(address) as client:
        client.ask("a red\nring")
    assert r"'a red\nring'" in caplog.text


def test_a_token_is_required(engine):
    right = {"authorization": "Bearer s3cret"}
    with serving(engine, CARD, Settings(token="s3cret")) as address, Client(address) as client:
        for headers in (
            {},
            {"authorization": "s3cret"},
            {"authorization": "Bearer s3cres"},
            {"authorization": b"\xff"},
        ):
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/images/generations")):
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        assert client.get("/v1/models", headers=right).status_code == 200
        answer = client.post("/v1/images/generations", headers=right, json={"prompt": "a", "response_format": "url"})
        assert client.get(answer.json()["data"][0]["url"]).status_code == 200  # its name is token enough


def test_host_names_of_the_server(engine):
    with serving(engine, CARD, Settings(hosts=(*LOOPBACK, "pictures.example"))) as address, Client(address) as client:
        for host in ("127.0.0.1:8000", "localhost", "[::1]:80", "Pictures.Example"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            assert client.get("/v1/models", headers={"host": host}).status_code == 400
            assert client.get("/readyz", headers={"host": host}).status_code == 200  # containers are asked by address


def test_every_answer_has_the_security_headers(client):
    for path in ("/", "/v1/models", "/nothing", "/metrics"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == CSP
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    assert "unsafe" not in CSP
    assert "http" not in CSP


def test_the_image_store_is_bounded_and_expires():
    now = [0.0]
    store = ImageStore(limit=10, seconds=5, clock=lambda: now[0])
    first, second = store.put(b"12345", "png"), store.put(b"67890", "png")
    assert (store.get(first), store.get(second)) == (b"12345", b"67890")
    third = store.put(b"abc", "webp")
    assert (store.get(first), store.get(second), store.get(third)) == (None, b"67890", b"abc")
    now[0] = 5.0
    assert store.get(third) is None
    assert store.bytes == 0
    assert store.get(store.put(b"x" * 11, "png")) is None
    assert len({store.put(b"", "png") for _ in range(100)}) == 100
    assert (len(first), third[-5:]) == (36, ".webp")


def test_metrics(client, engine):
    client.ask("red circle", n=2)
    client.ask("refuse")
    with client.events("endless") as source:
        next(source)
        until(lambda: engine.status().running == 1)
        text = client.get("/metrics").text
        assert "tpdm_slots_in_use 1.0" in text
    left = 'tpdm_http_responses_total{route="/v1/images/generations",status="499"} 1.0'
    until(lambda: left in client.get("/metrics").text)
    lines = client.get("/metrics").text.splitlines()
    for line in (
        "tpdm_queue_waiting 0.0",
        "tpdm_slots 2.0",
        "tpdm_images_finished_total 2.0",
        "tpdm_images_cancelled_total 1.0",
        "tpdm_images_refused_total 1.0",
        "tpdm_image_steps_count 2.0",
        "tpdm_image_seconds_count 2.0",
        "tpdm_queue_seconds_count 2.0",
        'tpdm_http_responses_total{route="/v1/images/generations",status="200"} 1.0',
        'tpdm_http_responses_total{route="/v1/images/generations",status="422"} 1.0',
    ):
        assert line in lines


def test_the_served_model_is_listed(client):
    model = client.get("/v1/models").json()["data"][0]
    assert (model["id"], model["object"]) == ("tinyworld", "model")
    assert model["tpdm"]["default_steps"] == 28
    assert json.dumps(model) == json.dumps(client.get("/v1/models/tinyworld").json())
