"""SD1.5 with its safety checker behind the server: a flagged image came back black, and nothing said why.

https://github.com/huggingface/diffusers/issues/4906
"""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from tests.serving.conftest import CARD, Client, serving
from tests.serving.fake import FakeEngine
from tests.support.tiny_texts import make_speaking_pipe
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.http.settings import Settings

ASKED = {"prompt": "a cat", "seed": 3, "num_inference_steps": 3}
FIELD = "nsfw_content_detected"


def make_checker():
    """The real class at tiny size, and random: what it flags is a matter of its thresholds."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 10},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    return StableDiffusionSafetyChecker(config).eval()


def set_flags(pipe, flagged):
    for weights in (pipe.safety_checker.concept_embeds_weights, pipe.safety_checker.special_care_embeds_weights):
        torch.nn.init.constant_(weights, -2.0 if flagged else 2.0)  # of cosines


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    torch.manual_seed(0)
    pipe = make_speaking_pipe("SD1.5", tmp_path_factory.mktemp("pipe"))
    pipe.safety_checker = make_checker()
    pipe.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return pipe


@pytest.fixture(scope="module")
def client(pipe):
    engine = PipelineEngine(pipe, None, slots=2, queue_limit=8)
    with serving(engine, CARD, Settings()) as address, Client(address) as client:
        yield client


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))


@pytest.mark.parametrize("flagged", [True, False])
def test_the_result_of_the_checker_is_that_of_the_stock_pipeline(pipe, client, flagged):
    set_flags(pipe, flagged)
    stock = pipe("a cat", num_inference_steps=3, generator=torch.Generator().manual_seed(3))
    assert stock.nsfw_content_detected == [flagged]
    (data,) = client.ask(**ASKED).json()["data"]
    assert data[FIELD] is flagged
    assert np.abs(pixels(data).astype(int) - np.asarray(stock.images[0]).astype(int)).max() <= 1
    assert (pixels(data).max() == 0) == flagged


def test_every_image_has_its_own_result(pipe, client, monkeypatch):
    def checker(images, clip_input):
        """Flags the darker half, as a checker that looks at the pictures would."""
        flags = [bool(image.mean() < limit) for image in images]
        return torch.where(torch.tensor(flags)[:, None, None, None], 0.0, images), flags

    set_flags(pipe, False)
    brightness = [pixels(data).mean() for data in client.ask(**ASKED, n=4).json()["data"]]
    limit = 2 * np.median(brightness) / 255 - 1
    monkeypatch.setattr(pipe.safety_checker, "forward", checker)
    found = client.ask(**ASKED, n=4).json()["data"]
    assert [data[FIELD] for data in found] == [one < np.median(brightness) for one in brightness]
    assert len({data[FIELD] for data in found}) == 2


def test_by_url_as_an_event_and_in_no_preview(pipe, client):
    """Previews are decoded by the server: what the checker hides at the end must not be seen on the way."""
    set_flags(pipe, True)
    (data,) = client.ask(**ASKED, response_format="url").json()["data"]
    assert data[FIELD] is True
    with client.events(**ASKED, partial_images=2) as source:
        events = [data for name, data in source if name.endswith(("partial_image", "completed"))]
    assert events[-1][FIELD] is True
    assert [pixels(data).max() for data in events] == [0, 0, 0]
    set_flags(pipe, False)
    with client.events(**ASKED, partial_images=2) as source:
        assert all(pixels(data).max() > 0 for name, data in source if name.endswith("partial_image"))


def test_without_a_checker_the_field_is_missing():
    with serving(FakeEngine()) as address, Client(address) as client:
        verdicts = [client.ask(prompt).json()["data"][0].get(FIELD) for prompt in ("flagged", "harmless", "red circle")]
        assert FIELD not in client.ask("red circle").json()["data"][0]
    assert verdicts == [True, False, None]
