"""Signals of a server process: accepted requests are finished, new ones are refused, and the exit code is 0."""

from __future__ import annotations

import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serving.conftest import Client, until
from tests.support.processes import Process

SERVER = """
import sys
from tests.serving.conftest import CARD
from tests.serving.fake import FakeEngine
from tpdm.serving.http.sockets import reserved
from tpdm.serving.http.server import serve
from tpdm.serving.http.settings import Limits, Settings

with reserved("127.0.0.1", int(sys.argv[1])) as sockets:
    serve(FakeEngine(pace=0.05), CARD, Settings(Limits(seconds=float(sys.argv[2]))), sockets)
"""
ROOT = Path(__file__).parents[2]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def process(seconds=30):
    port = free_port()
    server = Process(["-c", SERVER, port, seconds])
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            until(lambda: answers(client), 90)
            yield server, client
    finally:
        server.kill()
        server.wait()


def answers(client):
    try:
        return client.get("/healthz").status_code == 200
    except Exception:
        return False


def test_sigterm_finishes_accepted_requests_and_refuses_new_ones():
    with process() as (server, client):
        found = []
        asking = threading.Thread(target=lambda: found.append(client.ask("red circle", num_inference_steps=100)))
        asking.start()
        until(lambda: "tpdm_slots_in_use 1.0" in client.get("/metrics").text)
        server.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        refused = client.ask("too late")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        asking.join()
        assert found[0].status_code == 200
        assert found[0].json()["data"][0]["steps"] == 100
        assert server.wait(60) == 0


@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once(one):
    with process() as (server, _):
        start = time.monotonic()
        server.send_signal(one)
        assert server.wait(60) == 0
        assert time.monotonic() - start < 20  # of the 30 that it had
        assert "Traceback" not in server.stderr


def test_a_second_signal_does_not_wait():
    with process() as (server, client), client.events("endless") as source:
        next(source)
        server.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_draining_has_a_time_limit():
    with process(seconds=1) as (server, client), client.events("endless") as source:
        next(source)
        server.send_signal(signal.SIGTERM)
        assert [name for name, _ in source][-2:] == ["error", "done"]
        assert server.wait(60) == 0
