"""A request that is being answered: whatever way its reader goes, nothing of it stays behind."""

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


def test_the_events_of_a_call_end_with_its_picture(engine):
    async def read():
        with RequestTracker(engine).start([ImageRequest("circle", 0)]) as call:
            return [event async for event in call.events()]

    assert isinstance(asyncio.run(read())[-1][1], ImageDone)


def test_of_a_reader_that_falls_behind_the_newest_preview_waits(engine):
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


def test_a_reader_that_leaves_while_it_waits_leaves_nothing_in_the_loop(engine):
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
        # A timer that still runs would keep the call's events, pictures and all, for an hour.
        return [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]

    assert asyncio.run(leave()) == []
    assert len(calls) == 0
