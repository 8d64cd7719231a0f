"""Images over HTTP: in one answer, by url, as a stream, with OpenAI's client, and their cancellation."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket

import httpx
import openai
import pytest
from PIL import Image

from tests.serving.conftest import CARD, Client, serving, until
from tests.serving.fake import OVERLONG, FakeEngine, picture, steps_of
from tpdm.serving.engine.interface import ImageRequest
from tpdm.serving.http.app import make_app
from tpdm.serving.http.server import make_config
from tpdm.serving.http.settings import Limits, ModelCard, Settings


def opened(content):
    return Image.open(io.BytesIO(content))


def idle(engine):
    return engine.status().running == engine.status().waiting == 0


def test_an_image_has_its_steps_and_times(client):
    answer = client.ask("red circle", seed=5, n=2, size="32x48").json()
    assert answer["model"] == "tinyworld"
    for i, data in enumerate(answer["data"]):
        request = ImageRequest("red circle", 5 + i, width=32, height=48)
        assert opened(base64.b64decode(data["b64_json"])).tobytes() == picture(request).tobytes()
        assert (data["seed"], data["steps"]) == (5 + i, steps_of(request))
        assert len(data["times"]) == data["steps"] + 1
        assert (data["times"][0], data["times"][-1]) == (1.0, 0.0)
        assert 0 <= data["queued_seconds"] <= data["seconds"]


def test_a_truncated_text_adds_a_warning(client):
    assert client.ask("overlong circle").json()["data"][0]["warnings"] == [OVERLONG]
    assert "warnings" not in client.ask("circle").json()["data"][0]


def test_a_seed_is_drawn_if_none_is_given(client, engine):
    seeds = [client.ask().json()["data"][0]["seed"] for _ in range(3)]
    assert len(set(seeds)) == 3
    assert seeds == [request.seed for request in engine.requests]


def test_every_field_reaches_the_engine(engine):
    card = ModelCard("m", learned=True, gamma_conditioned=True, default_steps=28)
    fields = {"negative_prompt": "blur", "guidance_scale": 3, "quality": 0.25, "max_steps": 4, "model": "m"}
    with serving(engine, card) as address, Client(address) as client:
        assert client.ask("a", seed=1, size="64x32", **fields).status_code == 200
        assert client.ask("a", seed=1, gamma=0.9).status_code == 200
        assert client.ask("a", seed=1, num_inference_steps=6).json()["data"][0]["steps"] == 6
    common = {"timeout": Limits().seconds}
    assert engine.requests == [
        ImageRequest("a", 1, "blur", 64, 32, 3.0, quality=0.25, max_steps=4, **common),
        ImageRequest("a", 1, gamma=0.9, **common),
        ImageRequest("a", 1, num_inference_steps=6, **common),
    ]


@pytest.mark.parametrize(
    ("word", "quality"), [("auto", None), ("standard", None), ("low", 0.0), ("medium", 0.5), ("high", 1.0), ("hd", 1.0)]
)
def test_words_for_quality(engine, word, quality):
    card = ModelCard("m", learned=True, gamma_conditioned=True, default_steps=28)
    with serving(engine, card) as address, Client(address) as client:
        assert client.ask("a", quality=word).status_code == 200
    assert engine.requests[0].quality == quality


def test_without_a_quality_setting_words_are_ignored_and_numbers_refused(client, engine):
    assert client.ask("a", quality="hd").status_code == 200
    assert engine.requests[0].quality is None
    for field, value in (("quality", 0.5), ("gamma", 0.9)):
        answer = client.ask("a", **{field: value})
        assert answer.status_code == 422
        assert "this model has no quality setting" in answer.json()["error"]["message"]


def test_an_image_by_url(client):
    data = client.ask("red circle", seed=1, response_format="url").json()["data"][0]
    assert "b64_json" not in data
    answer = client.get(data["url"])
    assert answer.headers["content-type"] == "image/png"
    assert opened(answer.content).tobytes() == picture(ImageRequest("red circle", 1)).tobytes()
    assert client.get(data["url"][:-5] + "A.png").status_code == 404


@pytest.mark.parametrize(
    ("proxies", "proxy", "scheme"),
    [
        (None, "127.0.0.1", "https"),
        (None, "172.17.0.1", "http"),
        ("172.16.0.0/12", "172.17.0.1", "https"),
        ("*", "::2", "https"),
    ],
)
def test_urls_have_the_scheme_of_the_proxy(engine, proxies, proxy, scheme):
    settings = Settings(proxies=proxies)
    config = make_config(make_app(engine, CARD, settings), settings)
    config.load()

    async def ask():
        transport = httpx.ASGITransport(config.loaded_app, client=(proxy, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://pictures.example.org") as client:
            body = {"prompt": "red circle", "response_format": "url"}
            headers = {"X-Forwarded-Proto": "https"}
            return await client.post("/v1/images/generations", json=body, headers=headers)

    url = asyncio.run(ask()).json()["data"][0]["url"]
    engine.close()
    assert url.startswith(f"{scheme}://pictures.example.org/v1/images/files/")


def test_events_of_a_stream(client):
    with client.events("red circle", seed=3) as source:
        events = list(source)
    request = ImageRequest("red circle", 3)
    names = [name for name, _ in events]
    steps = steps_of(request)
    assert [names[0], *names[-2:]] == ["image_generation.created", "image_generation.completed", "done"]
    # A reader that is slower than the steps gets the newest picture.
    assert set(names[1:-2]) <= {"image_generation.partial_image", "image_generation.step"}
    assert names[-3] == "image_generation.partial_image"
    assert events[0][1]["seeds"] == [3]
    partial = [data for _, data in events[1:-2]]
    assert [data["step"] for data in partial] == list(range(1, steps + 1))
    assert [data["time"] for data in partial] == sorted((data["time"] for data in partial), reverse=True)
    assert opened(base64.b64decode(partial[-1]["b64_json"])).size == (64, 64)
    assert events[-2][1]["steps"] == steps


def test_events_without_previews(client, engine):
    with client.events("red circle", seed=3, n=2, partial_images=0) as source:
        events = list(source)
    assert not any(request.previews for request in engine.requests)
    assert {name for name, _ in events[1:-3]} <= {"image_generation.step", "image_generation.completed"}
    assert sorted(data["index"] for name, data in events if name == "image_generation.completed") == [0, 1]


def test_openais_client(client, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    official = openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="unused", max_retries=0)
    with official:
        answer = official.images.generate(
            prompt="red circle", model="tinyworld", n=1, quality="hd", size="64x64", extra_body={"seed": 4}
        )
        assert answer.data[0].model_extra["steps"] == steps_of(ImageRequest("red circle", 4))
        assert opened(base64.b64decode(answer.data[0].b64_json)).size == (64, 64)
        assert [model.id for model in official.models.list()] == ["tinyworld"]
        assert official.models.retrieve("tinyworld").id == "tinyworld"
        stream = official.images.generate(prompt="red circle", stream=True, partial_images=2, extra_body={"seed": 4})
        kinds = [event.type for event in stream]
        assert kinds[-1] == "image_generation.completed"
        assert "image_generation.partial_image" in kinds
        with pytest.raises(openai.NotFoundError, match="Use 'tinyworld'"):
            official.images.generate(prompt="red circle", model="dall-e-3")
        failing = official.images.generate(prompt="explode", stream=True)
        with pytest.raises(openai.APIError, match="The log of the server gives the reason"):
            list(failing)


def test_a_request_is_cancelled_by_its_id(client, engine):
    with client.events("endless", n=2) as source:
        call = next(source)[1]["id"]
        next(source)
        assert client.delete(f"/v1/requests/{call}").json() == {"id": call, "cancelled": True}
        ends = [data for name, data in source if name == "error"]
    assert [data["error"]["code"] for data in ends] == ["cancelled", "cancelled"]
    assert client.delete(f"/v1/requests/{call}").status_code == 404
    until(lambda: idle(engine))
    assert engine.status().cancelled == 2


def test_a_client_that_disconnects_from_a_stream_cancels_it(client, engine):
    with client.events("endless") as source:
        next(source)
    until(lambda: idle(engine))
    assert engine.status().cancelled == 1


def test_a_client_that_stops_reading_cancels_its_image(engine, monkeypatch):
    noise = Image.frombytes("RGB", (512, 512), os.urandom(512 * 512 * 3))  # as large as its bytes
    monkeypatch.setattr("tests.serving.fake.picture", lambda request: noise)
    monkeypatch.setattr("tpdm.serving.http.streaming.SEND_SECONDS", 0.2)
    body = b'{"prompt": "endless", "stream": true}'
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving(engine) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: engine.status().cancelled == 1)


def test_a_client_that_disconnects_cancels_its_image(engine):
    body = b'{"prompt": "endless", "n": 2}'
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving(engine) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: engine.status().running == 2)
        until(lambda: engine.status().cancelled == 2)


def test_an_image_that_fails_cancels_the_others_of_its_request(client, engine):
    answer = client.ask("explode", n=2)
    assert answer.status_code == 500
    until(lambda: idle(engine))


def test_all_images_of_a_request_are_accepted_or_none():
    engine = FakeEngine(slots=1, queue_limit=2)
    with serving(engine) as address, Client(address) as client:
        assert client.ask("endless", n=8).status_code == 429
        until(lambda: idle(engine))
        assert client.ask("a", n=1).status_code == 200


def test_a_stream_without_events_is_kept_open(monkeypatch):
    monkeypatch.setattr("tpdm.serving.http.handlers.KEEP_ALIVE_SECONDS", 0.02)
    with serving(FakeEngine(pace=0.1)) as address, Client(address) as client:
        body = {"prompt": "red circle", "stream": True}
        lines = client.post("/v1/images/generations", json=body).text.splitlines()
    assert ": still waiting" in lines
    assert "data: [DONE]" in lines


def test_the_timeout_of_an_image():
    settings = Settings(Limits(seconds=0.2))
    with serving(FakeEngine(), CARD, settings) as address, Client(address) as client:
        answer = client.ask("endless")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert int(answer.headers["retry-after"]) >= 1
