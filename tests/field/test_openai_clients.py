"""Chat front ends and OpenAI's own client against the server: what each of them sends, and what it reads of the answer.

People pointed Open WebUI and LibreChat at a server of images that was not OpenAI's. The names of models that those
clients send (``dall-e-2``, ``dall-e-3``, ``gpt-image-1``) were unknown there, and so were fields that they fill in
unasked; LibreChat's older tool reads a url although it asks for none.
https://github.com/qwersyk/Newelle/issues/430 is the same of another client, https://github.com/openclaw/openclaw/pull/85776
says what OpenAI does with a compression of a png.
"""

from __future__ import annotations

import base64
import io

import httpx
import openai
import pytest
from PIL import Image

from tests.serving.conftest import CARD, Client, serving
from tests.serving.fake import FakeEngine, picture
from tpdm.serving.engine.interface import ImageRequest
from tpdm.serving.http.settings import ANY, Limits, Settings

ALIASES = ("dall-e-2", "dall-e-3", "gpt-image-1")
WIDE = Limits(side=2048)


@pytest.fixture(scope="module")
def aliased():
    with serving(FakeEngine(), CARD, Settings(WIDE, aliases=ALIASES)) as address, Client(address) as client:
        yield client


@pytest.fixture(scope="module")
def by_url():
    """A server for clients that read a url where they ask for nothing."""
    settings = Settings(WIDE, aliases=(ANY,), response_format="url")
    with serving(FakeEngine(), CARD, settings) as address, Client(address) as client:
        yield client


@pytest.fixture
def official(aliased, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with openai.OpenAI(base_url=str(aliased.base_url.join("/v1")), api_key="unused", max_retries=0) as client:
        yield client


def post(client, **body):
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def file_of(data):
    return Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))


@pytest.mark.parametrize("size", ["auto", "512x512"])
@pytest.mark.parametrize("model", ["dall-e-2", "tinyworld"])
def test_open_webui(aliased, model, size):
    """It sends its default model unless told another, and asks for base64 of all models but OpenAI's newer ones."""
    body = {"model": model, "prompt": "red circle", "n": 2, "size": size, "response_format": "b64_json"}
    for data in post(aliased, **body)["data"]:
        assert file_of(data).format == "PNG"


def test_open_webui_with_parameters_of_its_administrator(aliased):
    """It adds what stands in its settings to every request; of a url it wants an image by its content type."""
    more = {"output_format": "webp", "output_compression": None, "cfg": None}
    (data,) = post(
        aliased, model="gpt-image-1", prompt="red circle", n=1, size="512x512", response_format="url", **more
    )["data"]
    assert aliased.get(data["url"]).headers["content-type"] == "image/webp"


@pytest.fixture(scope="module")
def both():
    """A server for clients of both kinds."""
    settings = Settings(WIDE, aliases=ALIASES, response_format="both")
    with serving(FakeEngine(), CARD, settings) as address, Client(address) as client:
        yield client


@pytest.mark.parametrize("server", ["by_url", "both"])
@pytest.mark.parametrize("quality", ["standard", "hd"])
def test_librechats_dalle_tool(request, server, quality):
    """It asks for no format, reads ``url``, and takes the name of its file from the end of it."""
    by_url = request.getfixturevalue(server)
    body = {"model": "dall-e-3", "quality": quality, "style": "vivid", "size": "1024x1024", "n": 1}
    (data,) = post(by_url, prompt="red circle", **body)["data"]
    assert data["url"].endswith(".png")
    answer = by_url.get(data["url"])
    assert Image.open(io.BytesIO(answer.content)).format == "PNG"
    assert (
        "style: this model has no styles, and vivid has no effect; describe the style in the prompt" in data["warnings"]
    )


@pytest.mark.parametrize("server", ["aliased", "both"])
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_librechats_image_tool(request, server, kind):
    """It asks for no format either, and reads ``b64_json``; it sends a compression with webp and jpeg alone."""
    aliased = request.getfixturevalue(server)
    compression = {} if kind == "png" else {"output_compression": 100}
    body = {"model": "gpt-image-1", "n": 1, "background": "auto", "quality": "auto", "size": "auto"}
    answer = post(aliased, prompt="red circle", output_format=kind, **body, **compression)
    assert file_of(answer["data"][0]).format == kind.upper()
    assert answer["output_format"] == kind
    assert "warnings" not in answer["data"][0]  # nothing that it sends unasked is a demand


def test_librechats_edits_are_refused(official, aliased):
    """Its editing tool sends a form with pictures, here one of 3 MB, which the answer must not wait for."""
    words = "this server makes images from texts only"
    with pytest.raises(openai.BadRequestError, match=words) as refusal:
        official.images.edit(image=("a.png", bytes(3_000_000)), prompt="red", model="gpt-image-1")
    assert (refusal.value.code, refusal.value.type) == ("unsupported", "invalid_request_error")
    answer = aliased.post("/v1/images/variations", files={"image": ("a.png", bytes(3_000_000))})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_the_official_client_in_every_format(official):
    for kind in ("png", "jpeg", "webp"):
        made = official.images.generate(
            prompt="red circle", model="gpt-image-1", output_format=kind, user="somebody", extra_body={"seed": 1}
        )
        assert (made.output_format, made.background, made.size) == (kind, "opaque", "64x64")
        assert made.safety_identifier == "somebody"
        image = file_of(made.data[0].to_dict())
        assert image.format == kind.upper()
        assert image.getpixel((9, 9)) == pytest.approx(picture(ImageRequest("red circle", 1)).getpixel((9, 9)), abs=4)


def test_the_official_client_by_url(official, aliased):
    for kind, ending in (("png", "png"), ("jpeg", "jpeg"), ("webp", "webp")):
        made = official.images.generate(prompt="red circle", output_format=kind, response_format="url")
        answer = aliased.get(made.data[0].url)
        assert made.data[0].url.endswith(f".{ending}")
        assert answer.headers["content-type"] == f"image/{kind}"
        assert Image.open(io.BytesIO(answer.content)).format == kind.upper()


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_the_official_client_as_a_stream(official, number):
    stream = official.images.generate(
        prompt="red circle",
        model="gpt-image-1",
        stream=True,
        partial_images=number,
        output_format="webp",
        extra_body={"num_inference_steps": 7},
    )
    events = [event for event in stream if "partial" in event.type or "completed" in event.type]
    *partial, last = events
    assert [event.partial_image_index for event in partial] == list(range(number))
    assert last.type == "image_generation.completed"
    for event in events:
        assert (event.output_format, event.background, event.size) == ("webp", "opaque", "64x64")
        assert file_of(event.to_dict()).format == "WEBP"
        assert event.created_at > 1e9


def test_a_stream_contains_its_image_with_every_server_default(by_url):
    """OpenAI's streams know no urls, so that their clients read ``b64_json``; who asks for a url gets one."""
    for asked, found in ((None, "b64_json"), ("url", "url"), ("b64_json", "b64_json")):
        with by_url.events("red circle", partial_images=0, response_format=asked) as events:
            (done,) = [data for name, data in events if name == "image_generation.completed"]
        assert [name for name in ("b64_json", "url") if name in done] == [found]


def test_the_request_takes_precedence_over_the_server_default(by_url, both):
    for server in (by_url, both):
        for asked, other in (("b64_json", "url"), ("url", "b64_json")):
            (data,) = post(server, prompt="red circle", response_format=asked)["data"]
            assert asked in data
            assert other not in data


def test_a_client_that_sends_only_a_prompt(aliased):
    """As ``curl -d`` would; the case of a media type and its parameters count for nothing."""
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        content = b'{"prompt": "red circle"}'
        answer = aliased.post("/v1/images/generations", content=content, headers={"content-type": kind})
        assert file_of(answer.json()["data"][0]).size == (64, 64)


def test_models_that_are_listed(official, by_url):
    assert [(model.id, model.root) for model in official.models.list()] == [
        (name, "tinyworld") for name in ("tinyworld", *ALIASES)
    ]
    assert official.models.retrieve("dall-e-3").id == "dall-e-3"
    with pytest.raises(openai.NotFoundError, match=r"model is 'other'\. Use 'tinyworld'"):
        official.models.retrieve("other")
    assert [model["id"] for model in by_url.get("/v1/models").json()["data"]] == ["tinyworld"]
    assert by_url.get("/v1/models/whatever/it/is").json()["id"] == "whatever/it/is"


def test_another_model_is_refused_with_a_hint_to_model_alias(official, by_url):
    with pytest.raises(openai.NotFoundError, match=r"start the server with --model-alias 'dall-e-4'") as refusal:
        official.images.generate(prompt="red circle", model="dall-e-4")
    assert refusal.value.code == "model_not_found"
    assert post(by_url, prompt="red circle", model="dall-e-4")["model"] == "tinyworld"
    long = official.with_options(max_retries=0)
    with pytest.raises(openai.NotFoundError) as refusal:
        long.images.generate(prompt="red circle", model="x\n" * 1000)
    assert len(refusal.value.body["message"]) < 400
    assert "\n" not in refusal.value.body["message"]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_compression_changes_the_file(aliased, kind, monkeypatch):
    monkeypatch.setattr("tests.serving.fake.picture", lambda request: Image.radial_gradient("L").convert("RGB"))
    asked = {"prompt": "red circle", "output_format": kind, "seed": 1}
    sizes = [len(post(aliased, **asked, output_compression=value)["data"][0]["b64_json"]) for value in (0, 100)]
    assert sizes[0] < sizes[1]
    assert (
        post(aliased, **asked)["data"][0]["b64_json"]
        == post(aliased, **asked, output_compression=100)["data"][0]["b64_json"]
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"output_format": "jpg"}, "output_format: Input should be 'png', 'jpeg' or 'webp'"),
        ({"output_format": "gif"}, "output_format: Input should be"),
        (
            {"output_format": "jpeg", "output_compression": 101},
            "output_compression: Input should be less than or equal",
        ),
        ({"output_format": "webp", "output_compression": -1}, "output_compression: Input should be greater than or eq"),
        ({"output_format": "webp", "output_compression": "5"}, "output_compression: Input should be a valid integer"),
        ({"output_compression": 99}, "output_compression is 99, but png is lossless. Use output_format jpeg or webp"),
        ({"output_format": "png", "output_compression": 0}, "output_compression is 0, but png is lossless"),
        ({"background": "transparent"}, "background: Input should be 'auto' or 'opaque'"),
        ({"style": "anime"}, "style: Input should be 'vivid' or 'natural'"),
        ({"stream": True, "partial_images": 4}, "partial_images: Input should be less than or equal to 3"),
        ({"partial_images": 1}, "partial_images is 1, but stream is not true"),
        ({"quality": 1.5}, "or 'hd', or input should be less than or equal to 1"),
        (
            {"steps": 20, "cfg": 7},
            "Unknown fields: 'steps', 'cfg'. Leave them out. The known fields are prompt, model,",
        ),
        ({"prompt": None}, "prompt: Field required"),
    ],
)
def test_wrong_values_are_refused(aliased, fields, words):
    answer = aliased.post("/v1/images/generations", json={"prompt": "red circle", **fields})
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] in fields


def test_a_side_that_a_format_cannot_have_is_refused_at_once():
    with serving(FakeEngine(), CARD, Settings(Limits(side=20_000))) as address, Client(address) as client:
        answer = client.ask(size="16384x16", output_format="webp")
        assert answer.status_code == 422
        assert "size is 16384x16. Both sides must be at most 16383 pixels." in answer.json()["error"]["message"]
        assert client.ask(size="16384x16", output_format="jpeg").status_code == 200


def test_a_png_without_compression(aliased):
    """100 is what OpenAI's own default says, and what clients send with every format."""
    assert post(aliased, prompt="red circle", output_compression=100)["output_format"] == "png"


def test_urls_of_a_server_behind_a_name(by_url):
    with httpx.Client(base_url=by_url.base_url, trust_env=False, headers={"host": "pictures.example"}) as client:
        assert post(client, prompt="red circle")["data"][0]["url"].startswith(
            "http://pictures.example/v1/images/files/"
        )
