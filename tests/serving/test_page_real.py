"""The page with the real engine on tinyworld shows the computed images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.common.keys import Keys

from tests.serving.conftest import until
from tests.serving.test_page import chromium, open_page  # noqa: F401 - fixtures
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.http.settings import describe_model

CARD = describe_model("tinyworld", "tinyworld")
ROUNDING = 2  # of 255: calls of several rows round otherwise than those of one


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tinyworld", device="cpu")


@pytest.fixture
def real(pipe):
    return PipelineEngine(pipe, "tinyworld", slots=2, queue_limit=8, defaults=call_defaults("tinyworld"))


def shown(page, figure):
    """Pixels of the picture in a figure, which holds it itself."""
    kind, _, data = page.all(f"#{figure} img")[0].get_attribute("src").partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_both_images_are_those_of_the_pipeline(open_page, real, pipe):  # noqa: F811
    page = open_page(real, CARD).ready()
    prompt = "red circle and blue ring"
    for name, words in (("prompt", prompt), ("seed", "7")):
        page[name].clear()
        page[name].send_keys(words)
    page["draw"].click()
    words = page.summary()
    learned = attach(pipe, "tinyworld", defaults=call_defaults("tinyworld"))(prompt, seeds=[7])
    assert words.startswith(f"Learned: {learned.steps[0]} steps in ")
    assert f"Fixed: {CARD.default_steps} steps in " in words
    assert len(page.all("#curve .learned circle")) == learned.steps[0] + 1
    assert np.abs(shown(page, "learned") - np.asarray(learned.images[0])).max() <= ROUNDING
    call = {"num_inference_steps": CARD.default_steps, "generator": [torch.Generator().manual_seed(7)]}
    fixed = pipe([prompt], **call, **call_defaults("tinyworld")).images[0]
    assert np.abs(shown(page, "fixed") - np.asarray(fixed)).max() <= ROUNDING
    assert real.status().finished == 2
    assert page.driver.get_log("browser") == []


def test_a_stopped_image_is_no_longer_computed(open_page, real):  # noqa: F811
    page = open_page(real, CARD).ready()
    page["prompt"].clear()
    page["prompt"].send_keys("red circle and blue ring and green square", Keys.ENTER)
    until(lambda: real.status().image_steps > 0)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.summary()
    until(lambda: real.status().running == 0)
    status = real.status()
    assert status.finished + status.cancelled >= 1
    assert status.failed == status.waiting == 0


def test_a_refusal_of_the_pipeline_is_shown(open_page, real):  # noqa: F811
    page = open_page(real, CARD).ready()
    page["prompt"].clear()
    page["prompt"].send_keys("   ")
    page["draw"].click()
    page.wait(lambda: page["error"].text or not page["prompt"].get_property("validity")["valid"])
    assert real.status().image_steps == 0
