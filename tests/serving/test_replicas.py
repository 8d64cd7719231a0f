"""Replicas on this machine: load balancing, rolling restart, killed processes and autoscaling."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.serving.conftest import until
from tests.serving.fake import FakeEngine, picture, steps_of
from tpdm.core.errors import ConfigError
from tpdm.serving.engine.interface import (
    EngineStopped,
    Failed,
    ImageDone,
    ImageRequest,
    RequestCancelled,
    RequestRefused,
)

# Ray is imported inside: some of its own modules warn of what pydantic has renamed.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="replicas need ray: pip install 'tpdm[ray]'"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

ROOT = Path(__file__).parents[2]
FAKE = partial(FakeEngine, slots=4, queue_limit=100, pace=0.02)


def replica_pids():
    """Processes of replicas that Ray started for this test."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::ServeReplica:tpdm"):
            found.add(int(place.parent.name))
    return found


@pytest.fixture(scope="module")
def engine():
    from tpdm.serving.engine.ray_replicas import ReplicaConfig, start_replicas

    old = os.environ.get("PYTHONPATH", "")
    os.environ.update(PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'src'}{os.pathsep}{old}", RAY_USAGE_STATS_ENABLED="0")
    engine = start_replicas(ReplicaConfig(FAKE, replicas=2, max_replicas=3, slots=4, queue_limit=100, seconds=60))
    yield engine
    engine.close()


class ParsedRequest:
    """A request and what became of it."""

    def __init__(self, engine, request):
        self.request, self._events = request, queue.Queue()
        self.key = engine.submit(request, self._events.put)

    def end(self):
        while True:
            event = self._events.get(timeout=60)
            if isinstance(event, ImageDone | Failed):
                time.sleep(0.01)
                assert self._events.empty()  # exactly one end
                return event


def test_an_image_is_the_same_from_every_replica(engine):
    asked = [ParsedRequest(engine, ImageRequest("red circle", seed, width=32, height=32)) for seed in range(12)]
    for one in asked:
        done = one.end()
        assert done.steps == steps_of(one.request)
        assert done.image.tobytes() == picture(one.request).tobytes()
    assert len(replica_pids()) >= 2
    assert engine.status().finished == 12
    assert engine.status().rows > 0


def test_refusals_and_cancellations_work_across_processes(engine):
    assert isinstance(ParsedRequest(engine, ImageRequest("refuse", 0)).end().error, RequestRefused)
    asked = ParsedRequest(engine, ImageRequest("endless", 0))
    until(lambda: engine.status().running == 1)
    assert engine.cancel(asked.key)
    assert isinstance(asked.end().error, RequestCancelled)


def test_a_rolling_restart_loses_no_request(engine):
    before, asked, stop = replica_pids(), [], threading.Event()

    def load():
        while not stop.wait(0.3):
            asked.append(ParsedRequest(engine, ImageRequest("red circle", len(asked), num_inference_steps=40)))

    loading = threading.Thread(target=load)
    loading.start()
    engine.restart()
    until(lambda: len(replica_pids() - before) >= 2 and not replica_pids() & before, 90)
    stop.set()
    loading.join()
    assert len(asked) > 10
    assert {type(one.end()) for one in asked} == {ImageDone}


def test_a_killed_replica_fails_its_requests_with_an_error(engine):
    asked = [ParsedRequest(engine, ImageRequest("red circle", seed, num_inference_steps=100)) for seed in range(8)]
    until(lambda: engine.status().running > 4, 20)  # more than one replica has slots for
    before = replica_pids()
    os.kill(min(before), signal.SIGKILL)
    ends = [one.end() for one in asked]
    lost = [end for end in ends if isinstance(end, Failed)]
    assert 0 < len(lost) < 8
    assert all(isinstance(end.error, EngineStopped) and "Send the request again" in str(end.error) for end in lost)
    again = [ParsedRequest(engine, ImageRequest("red circle", seed)) for seed in range(8)]
    assert {type(one.end()) for one in again} == {ImageDone}
    until(lambda: len(replica_pids() - {min(before)}) >= 2, 60)  # Ray starts another


def test_replicas_follow_the_load(engine):
    asked = [ParsedRequest(engine, ImageRequest("endless", seed)) for seed in range(40)]
    until(lambda: len(replica_pids()) == 3, 90)
    for one in asked:
        engine.cancel(one.key)
    assert {type(one.end().error) for one in asked} == {RequestCancelled}


def test_a_maximum_below_the_minimum_is_refused():
    from tpdm.serving.engine.ray_replicas import ReplicaConfig

    for replicas, most in ((0, 1), (2, 1)):
        with pytest.raises(ConfigError, match="It must be 1 <= replicas"):
            ReplicaConfig(FAKE, replicas, most, 1, 1)
