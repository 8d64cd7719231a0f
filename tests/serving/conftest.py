"""A real server on a free port, and a client for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from tests.serving.fake import FakeEngine
from tpdm.serving.http.app import make_app
from tpdm.serving.http.settings import ModelCard, Settings

CARD = ModelCard(
    "tinyworld", learned=True, gamma_conditioned=False, default_steps=28, examples=(("one object", "red circle"),)
)


@contextmanager
def serving(engine, card=CARD, settings=None):
    """Serves the application with uvicorn and gives its address."""
    app = make_app(engine, card, settings or Settings())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        engine.close()


class Client(httpx.Client):
    """Client for a server of this machine that uses no proxy."""

    def __init__(self, address, **options):
        super().__init__(base_url=address, trust_env=False, timeout=60, **options)

    def ask(self, prompt="red circle", **fields):
        return self.post("/v1/images/generations", json={"prompt": prompt, **fields})

    @contextmanager
    def events(self, prompt="red circle", **fields):
        """The events of a stream, as (name, data)."""
        body = {"prompt": prompt, "stream": True, **fields}
        with self.stream("POST", "/v1/images/generations", json=body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield parse_events(response.iter_lines())


def parse_events(lines):
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line == "data: [DONE]":
            yield "done", None
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def until(condition, seconds=30.0):
    """Waits for a condition that another thread makes true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.005)


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def client(engine):
    with serving(engine) as address, Client(address) as client:
        yield client
