"""``stream`` with ``partial_images``: somebody asked for two previews and got ten.

https://github.com/QuantumNous/new-api/issues/1234 and https://github.com/sgl-project/sglang/issues/24240
"""

from __future__ import annotations

import asyncio
import base64
import io

import pytest
from PIL import Image

from tests.serving.conftest import CARD, Client, serving
from tests.serving.fake import FakeEngine
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.engine.interface import ImageRequest, StepEvent
from tpdm.serving.http.request_tracker import RequestTracker
from tpdm.serving.http.settings import Settings


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tinyworld", device="cpu")


@pytest.fixture(scope="module")
def client(pipe):
    engine = PipelineEngine(pipe, "tinyworld", slots=4, queue_limit=8, defaults=call_defaults("tinyworld"))
    with serving(engine, CARD, Settings()) as address, Client(address) as client:
        yield client


def events(client, **fields):
    with client.events("red circle top", seed=1, **fields) as source:
        found = [data for name, data in source if name != "done"]
    assert found[-1]["type"] == "image_generation.completed"
    return found


def previews(found, index=0):
    return [one for one in found if one["type"].endswith("partial_image") and one["index"] == index]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "fields", [{}, {"num_inference_steps": 9}, {"num_inference_steps": 3}, {"n": 2, "max_steps": 5}]
)
def test_an_image_has_the_requested_number_of_previews(client, number, fields):
    found = events(client, partial_images=number, **fields)
    for index in range(fields.get("n", 1)):
        mine = previews(found, index)
        assert [one["partial_image_index"] for one in mine] == list(range(number))
        assert all(Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size == (64, 64) for one in mine)
        (done,) = [one for one in found if one["type"].endswith("completed") and one["index"] == index]
        assert "warnings" not in done
        told = {one["step"]: one["time"] for one in found if one.get("index") == index and "step" in one}
        assert sorted(told) == list(range(1, done["steps"] + 1))  # every step is told, with and without a preview
        assert [told[step] for step in sorted(told)] == done["times"][1:]


def test_an_image_of_fewer_steps_has_a_preview_of_each(client):
    assert [one["step"] for one in previews(events(client, partial_images=3, num_inference_steps=2))] == [1, 2]


def test_by_default_steps_have_previews_if_the_client_keeps_up(client):
    """As the page wants it."""
    found = previews(events(client, num_inference_steps=20))
    assert 3 < len(found) <= 20
    assert [one["partial_image_index"] for one in found] == list(range(len(found)))


def test_a_slow_client_gets_all_requested_previews():
    """Of every step's previews the newest alone would."""
    engine = FakeEngine()

    async def read():
        with RequestTracker(engine).start([ImageRequest("a", 0, num_inference_steps=20, previews=3)]) as call:
            while engine.status().finished < 1:
                await asyncio.sleep(0.01)
            return [event async for _, event in call.events()]

    found = asyncio.run(read())
    engine.close()
    assert sum(isinstance(event, StepEvent) and event.preview is not None for event in found) == 3


def test_previews_that_cannot_be_made_add_a_warning(client, monkeypatch):
    """As of the latents of a video, or of a decoder that is not of the kind that small pictures are made with."""
    monkeypatch.setattr("tpdm.serving.engine.previews.decode_preview", lambda *latents: None)
    found = events(client, partial_images=2, num_inference_steps=4)
    assert previews(found) == []
    assert found[-1]["warnings"] == ["partial_images: 2 previews could not be made from the latents of this pipeline"]
    assert "warnings" not in events(client, num_inference_steps=4)[-1]
