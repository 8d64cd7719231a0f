"""A reward over HTTP with a real server: correct scores, and one clear error for every failure."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import uvicorn

from tpdm.config.recipe import RewardConfig
from tpdm.core.errors import RewardError
from tpdm.rewards.base import checked_scores
from tpdm.rewards.loading import recipe_reward
from tpdm.rewards.remote import RemoteReward
from tpdm.rewards.remote_protocol import encode_images
from tpdm.serving.reward_server import make_app

IMAGES = torch.randint(0, 256, (5, 3, 6, 4), generator=torch.Generator().manual_seed(2)) / 255
PROMPTS = ["one", "two words", "drei", "四", "5"]


class Judge:
    """Mean brightness plus the length of the prompt. Fails on prompts that contain "explode"."""

    name = "judge"

    def __init__(self):
        self.calls = []

    def score(self, images_B3HW, prompts):
        self.calls.append(len(prompts))
        if "explode" in prompts[0]:
            raise ZeroDivisionError("no\nway")
        scores = images_B3HW.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts])
        return scores * float("nan") if "nan" in prompts[0] else scores


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """Use no proxy for the local server."""
    monkeypatch.setenv("no_proxy", "*")


@contextmanager
def serving(reward, token=None, limit=2**20):
    app = make_app(reward, token, limit)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextmanager
def answering(answer):
    """A server that calls ``answer(handler)`` for each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def reply(handler, status, body, headers=()):
    handler.send_response(status)
    for key, value in (*headers, ("Content-Length", str(len(body)))):
        handler.send_header(key, value)
    handler.end_headers()
    handler.wfile.write(body)


def post(url, body, headers=None):
    """Return status and content of a raw request."""
    request = urllib.request.Request(f"{url}/score", data=body, headers=headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def failure(url, images=IMAGES, prompts=PROMPTS, **options):
    with pytest.raises(RewardError) as caught:
        RemoteReward(url, **{"backoff": 0.01, **options}).score(images, prompts)
    message = str(caught.value)
    assert "\n" not in message
    assert f"Reward 'remote {url}'" in message
    assert prompts[0] in message
    return message


def test_remote_scores_equal_local_scores(monkeypatch):
    monkeypatch.setenv("TPDM_TEST_TOKEN", "s3cret")
    judge = Judge()
    with serving(judge, "s3cret") as url:
        reward = recipe_reward(RewardConfig(f"remote:{url}/", batch=2, token_env="TPDM_TEST_TOKEN"))
        scores = checked_scores(reward, IMAGES, PROMPTS)
    assert judge.calls == [2, 2, 1]
    assert torch.allclose(scores, Judge().score(IMAGES, PROMPTS), atol=1e-6)
    assert reward.name == f"remote {url}"


def test_large_images_are_sent_in_several_requests():
    judge = Judge()
    with serving(judge) as url:
        RemoteReward(url, limit=3 * (4 * 6 * 4 + 2**15)).score(IMAGES, PROMPTS)
    assert judge.calls == [3, 2]
    assert "the request has " in failure(url, limit=100)


def test_health_needs_no_token():
    with serving(Judge(), "s3cret") as url, urllib.request.urlopen(f"{url}/health", timeout=5) as response:
        assert json.loads(response.read()) == {"status": "ok"}


@pytest.mark.parametrize("token", [None, "wrong", "s3cret2", "ü"])
def test_a_wrong_token(token):
    judge = Judge()
    with serving(judge, "s3cret") as url:
        if token != "ü":
            message = ": status 401 (The token is missing or wrong. Send it in the header Authorization: Bearer.)"
            assert message in failure(url, token=token)
        else:
            assert post(url, b"{}", {"Authorization": "Bearer \xfc"})[0] == 401
    assert judge.calls == []


def test_the_error_of_a_failing_reward_names_the_prompt():
    with serving(Judge()) as url:
        message = failure(url, prompts=["explode now"] * 5, retries=1)
        assert "status 500 (Reward 'judge' failed on 'explode now'" in message
        assert "2 times" in message
        assert "Reward 'judge' returned nan for 'nan'" in failure(url, prompts=["nan"] * 5, retries=0)


def test_a_body_that_is_too_long():
    judge = Judge()
    with serving(judge, limit=500) as url:
        assert "status 413 (The request is longer than 500 bytes" in failure(url)
    assert judge.calls == []


ONE = encode_images(IMAGES[:1])[0]
WRONG = {
    "no JSON": (b"{", "the request: Invalid JSON"),
    "a list": (b"[]", "the request: Input should be an object"),
    "no images": ({"prompts": ["a"]}, "images: Field required"),
    "empty": ({"prompts": [], "images": []}, "prompts: List should have at least 1 item"),
    "a number": ({"prompts": [3], "images": [ONE]}, "prompts.0: Input should be a valid string"),
    "a long prompt": ({"prompts": ["a" * 30_000], "images": [ONE]}, "prompts.0: String should have at most 20000"),
    "more keys": ({"prompts": ["a"], "images": [ONE], "x": 1}, "x: Extra inputs are not permitted"),
    "counts": ({"prompts": ["a", "b"], "images": [ONE]}, "1 images and 2 prompts"),
    "no picture": ({"prompts": ["a"], "images": ["AAAA"]}, "image 0 is not a PNG in base64"),
}


def test_the_errors_of_invalid_requests_have_one_line():
    judge = Judge()
    with serving(judge) as url:
        for case, (content, words) in WRONG.items():
            status, answer = post(url, content if isinstance(content, bytes) else json.dumps(content).encode())
            assert status == 422, case
            assert words in answer["error"], case
            assert "\n" not in answer["error"]
    assert judge.calls == []


def test_a_server_that_hangs():
    free = threading.Event()
    with answering(lambda _: free.wait(10)) as url:
        began = time.monotonic()
        assert ": no response within 0.1 s, 2 times." in failure(url, timeout=0.1, retries=1)
        assert time.monotonic() - began < 2
        free.set()


def test_a_server_that_trickles():
    def trickle(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.02)

    with answering(trickle) as url:
        assert "no response within 0.1 s" in failure(url, timeout=0.1, retries=0)


def test_no_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "no connection (" in failure(f"http://127.0.0.1:{port}", retries=1)


def test_a_failed_request_is_retried():
    requests = []

    def answer(handler):
        requests.append(time.monotonic())
        if len(requests) < 3:
            reply(handler, 503, b"busy")
        else:
            reply(handler, 200, json.dumps({"scores": [1, 2.5, 3, 4, 5]}).encode())

    with answering(answer) as url:
        assert RemoteReward(url, backoff=0.05).score(IMAGES, PROMPTS).tolist() == [1, 2.5, 3, 4, 5]
    assert requests[1] - requests[0] >= 0.05
    assert requests[2] - requests[1] >= 0.1


@pytest.mark.parametrize("first", ["cut off", "too many", "too slow"])
def test_temporary_failures_are_retried(first):
    requests, whole = [], json.dumps({"scores": [1, 2, 3, 4, 5]}).encode()

    def answer(handler):
        requests.append(1)
        if len(requests) > 1:
            reply(handler, 200, whole)
        elif first == "cut off":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(whole)))
            handler.end_headers()
            handler.wfile.write(whole[:9])
        else:
            reply(handler, {"too many": 429, "too slow": 408}[first], b"{}")

    with answering(answer) as url:
        assert RemoteReward(url, backoff=0.01).score(IMAGES, PROMPTS).tolist() == [1, 2, 3, 4, 5]
    assert len(requests) == 2


ANSWERS = {
    "wrong count": (200, b'{"scores": [1, 2]}', "the response has 2 scores"),
    "text for a number": (200, b'{"scores": [1, 2, 3, 4, "5"]}', "the response has 4 scores"),
    "null for a number": (200, b'{"scores": [1, 2, 3, 4, null]}', 'is not a JSON object with "scores"'),
    "no scores": (200, b'{"score": 1}', 'is not a JSON object with "scores"'),
    "no object": (200, b"[1]", 'is not a JSON object with "scores"'),
    "a pickle": (200, b"\x80\x04K\x01.", 'is not a JSON object with "scores"'),
    "not found": (404, b'{"detail": "Not Found"}', ": status 404 (Not Found)"),
    "no reason": (400, b"<html>", ": status 400 (no reason given)"),
    "too long": (200, b" " * (2**20 + 2), "the response has more than 1048576 bytes"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_responses_without_scores_are_refused(case):
    status, body, words = ANSWERS[case]
    requests = []
    with answering(lambda handler: (requests.append(1), reply(handler, status, body))) as url:
        assert words in failure(url)
    assert len(requests) == 1  # a retry would not help


def test_nan_from_a_server_is_refused():
    with (
        answering(lambda handler: reply(handler, 200, b'{"scores": [1, NaN, 3, 4, 5]}')) as url,
        pytest.raises(RewardError, match=r"Reward 'remote .*' returned nan for 'two words'"),
    ):
        checked_scores(RemoteReward(url), IMAGES, PROMPTS)


@pytest.mark.parametrize("status", [302, 307])
def test_the_token_is_not_sent_to_a_redirect(status):
    requests = []
    with (
        answering(lambda handler: (requests.append(1), reply(handler, 200, b"{}"))) as other,
        answering(lambda handler: reply(handler, status, b"", [("Location", f"{other}/score")])) as url,
    ):
        assert f": status {status}" in failure(url, token="s3cret")
    assert requests == []


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://host", "http://", "http://me:s3cret@host:80", "file:///etc/passwd"]
)
def test_invalid_addresses_are_refused(url):
    with pytest.raises(RewardError, match="must be remote:http://host:port without a user name or password") as caught:
        RemoteReward(url)
    assert "s3cret" not in str(caught.value)
