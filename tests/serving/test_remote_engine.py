"""The engine for replicas, with coroutines instead of replicas."""

from __future__ import annotations

import asyncio
import queue
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.serving.conftest import until
from tests.serving.fake import picture
from tpdm.serving.engine.interface import (
    DeadlineExceeded,
    EngineStopped,
    Failed,
    ImageDone,
    ImageRequest,
    QueueFull,
    RequestCancelled,
    RequestRefused,
    StepEvent,
)
from tpdm.serving.engine.remote import RemoteEngine, ReplicaStatus

A = ImageRequest("a", 0)
DONE = ImageDone(picture(A), 2, (1.0, 0.5, 0.0), 0.0, 0.0, ("a warning",), nsfw_content_detected=True)
closed = []


async def make(request):
    try:
        yield StepEvent(1, 0.5)
        if "gone" in request.prompt:
            raise EngineStopped("the replica is gone")
        if "broken" in request.prompt:
            raise ZeroDivisionError
        if "refuse" in request.prompt:
            yield Failed(RequestRefused("no"))
            return
        if "cut" in request.prompt:
            return
        if "endless" in request.prompt:
            await asyncio.sleep(1000)
        yield StepEvent(2, 0.0)
        if "late" in request.prompt:
            yield StepEvent(1, 0.5, DONE.image, again=True)
        yield ReplicaStatus("one", replace(engine_status(), calls=3, rows=4))
        yield DONE
    finally:
        closed.append(request.prompt)


def engine_status():
    with running() as engine:
        return engine.status()


@contextmanager
def running(slots=2, queue_limit=1, **options):
    engine = RemoteEngine(make, slots=slots, queue_limit=queue_limit, **options)
    try:
        yield engine
    finally:
        engine.close()


def follow(engine, request):
    events = queue.Queue()
    return engine.submit(request, events.put), events


def last(events):
    while True:
        event = events.get(timeout=5)
        if isinstance(event, ImageDone | Failed):
            assert events.empty()
            return event


def test_the_seconds_of_an_image_are_measured_in_this_process():
    with running() as engine:
        _, events = follow(engine, A)
        assert [events.get(timeout=5) for _ in range(2)] == [StepEvent(1, 0.5), StepEvent(2, 0.0)]
        done = last(events)
        assert (done.steps, done.times) == (2, DONE.times)
        assert (done.warnings, done.nsfw_content_detected) == (("a warning",), True)
        assert 0 < done.queued_seconds < done.seconds
        until(lambda: engine.status().finished == 1)
        status = engine.status()
        assert (status.calls, status.rows, status.image_steps) == (3, 4, 2)
        assert (status.waiting, status.running, status.slots, status.queue_limit) == (0, 0, 2, 1)


def test_a_step_with_a_second_event_for_its_preview_counts_once():
    with running() as engine:
        _, events = follow(engine, replace(A, prompt="late", previews=2))
        assert [events.get(timeout=5).again for _ in range(3)] == [False, False, True]
        last(events)
        until(lambda: engine.status().finished == 1)
        assert engine.status().image_steps == 2


@pytest.mark.parametrize(
    ("prompt", "error"),
    [("gone", EngineStopped), ("broken", ZeroDivisionError), ("refuse", RequestRefused), ("cut", EngineStopped)],
)
def test_errors_of_a_replica_reach_the_client(prompt, error):
    with running() as engine:
        _, events = follow(engine, replace(A, prompt=prompt))
        assert isinstance(last(events).error, error)
        until(lambda: engine.status().failed == 1)


def test_cancelling_closes_the_events_of_the_replica():
    with running() as engine:
        key, events = follow(engine, replace(A, prompt="endless cancelled"))
        events.get(timeout=5)
        assert engine.cancel(key)
        assert isinstance(last(events).error, RequestCancelled)
        assert not engine.cancel(key)
        assert not engine.cancel("unknown")
        until(lambda: engine.status().cancelled == 1)
    assert "endless cancelled" in closed


def test_cancelling_at_once_emits_a_last_event():
    with running(slots=50) as engine:
        pairs = [follow(engine, replace(A, prompt="endless")) for _ in range(50)]
        assert [engine.cancel(key) for key, _ in pairs] == [True] * 50
        assert {type(last(events).error) for _, events in pairs} == {RequestCancelled}


def test_the_timeout_starts_at_submission():
    with running() as engine:
        _, events = follow(engine, replace(A, prompt="endless", timeout=0.1))
        assert isinstance(last(events).error, DeadlineExceeded)
        until(lambda: engine.status().expired == 1)


def test_the_queue_of_replicas_is_bounded():
    with running(slots=1, queue_limit=1) as engine:
        for _ in range(2):
            follow(engine, replace(A, prompt="endless"))
        with pytest.raises(QueueFull) as refusal:
            follow(engine, A)
        assert refusal.value.retry_after > 0
        assert engine.status().refused == 1


def test_draining_and_closing():
    stopped = []
    with running(stop=lambda: stopped.append(True)) as engine:
        _, events = follow(engine, replace(A, prompt="endless"))
        assert not engine.drain(0.05)
        assert not engine.status().accepting
        with pytest.raises(EngineStopped):
            follow(engine, A)
    assert isinstance(last(events).error, EngineStopped)
    assert stopped == [True]
