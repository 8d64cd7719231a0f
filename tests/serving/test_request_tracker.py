"""A request that is being answered leaves nothing behind, however its reader ends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.serving.fake import FakeEngine
from tpdm.serving.engine.interface import ImageDone, ImageRequest
from tpdm.serving.http.request_tracker import RequestTracker


@pytest.fixture
def engine():
    engine = FakeEngine()
    yield engine
    engine.close()


def test_the_events_of_a_request_end_with_its_image(engine):
    async def read():
        with RequestTracker(engine).start([ImageRequest("circle", 0)]) as call:
            return [event async for event in call.events()]

    assert isinstance(asyncio.run(read())[-1][1], ImageDone)


def test_a_slow_reader_gets_the_newest_preview(engine):
    async def read():
        with RequestTracker(engine).start(
            [ImageRequest(name, 0, num_inference_steps=20, previews="every") for name in "ab"]
        ) as call:
            while engine.status().finished < 2:
                await asyncio.sleep(0.01)
            return [event async for event in call.events()]

    events = asyncio.run(read())
    for index in range(2):
        *steps, done = [event for one, event in events if one == index]
        assert [step.step for step in steps] == list(range(1, 21))
        assert [step.step for step in steps if step.preview is not None] == [20]
        assert isinstance(done, ImageDone)


def test_a_cancelled_reader_leaves_no_timer_in_the_loop(engine):
    calls = RequestTracker(engine)

    async def read(call):
        async for _ in call.events():
            pass

    async def leave():
        with calls.start([ImageRequest("endless", 0)]) as call:
            reader = asyncio.create_task(read(call))
            await asyncio.sleep(0.05)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        # A timer that still runs would keep the events and images of the request for an hour.
        return [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]

    assert asyncio.run(leave()) == []
    assert len(calls) == 0
