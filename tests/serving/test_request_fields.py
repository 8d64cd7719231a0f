"""Every field of a request, on a real pipeline, changes the image or the answer, or is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.serving.conftest import CARD, Client, serving
from tests.test_artifact import config_of
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.http.protocol import GenerationRequest
from tpdm.serving.http.settings import Settings

BASE = {"prompt": "large red circle", "seed": 0, "max_steps": 3, "size": "32x32"}
JPEG = {"output_format": "jpeg"}
STREAM = {"stream": True}
GUIDED = {"guidance_scale": 4.0}
# field: what goes with it, one value, another
CHANGING = {
    "prompt": ({}, "large red circle", "small blue ring"),
    "negative_prompt": (GUIDED, "red circle", "blue ring"),
    "n": ({}, 1, 2),
    "size": ({}, "32x32", "32x48"),
    "response_format": ({}, "b64_json", "url"),
    "quality": ({"max_steps": None}, 0.0, 1.0),
    "gamma": ({"max_steps": None}, 0.9, 0.99),
    "stream": ({}, False, True),
    "partial_images": (STREAM, 1, 2),
    "output_format": ({}, "png", "webp"),
    "output_compression": (JPEG, 0, 100),
    "style": ({}, None, "vivid"),
    "moderation": ({}, None, "low"),
    "safety_identifier": ({}, "a", "b"),
    "user": ({}, "a", "b"),
    "seed": ({}, 0, 1),
    "guidance_scale": ({}, 1.0, 6.0),
    "max_steps": ({}, 1, 2),
    "num_inference_steps": ({"max_steps": None}, 2, 3),
}
# The embedded model has one scale; pipelines that know the other are served in tests/field/test_guidance_scales.py.
REFUSED = {"model": "another", "background": "transparent", "true_cfg_scale": 4.0}
VOLATILE = ("created", "created_at", "id", "seconds", "queued_seconds")


@pytest.fixture(scope="module")
def client():
    """A gamma-conditioned TPM with random weights, so that all its inputs have an effect."""
    torch.manual_seed(0)
    shape = TPMConfig(160, 160, channels=8, grid=2, gamma_range=(0.9, 0.99), storage="fp32")
    tpm = TimePredictionModule(shape).eval()
    torch.nn.init.normal_(tpm.fc1.weight)
    dial = ((0.9, 4.0), (0.95, 8.0), (0.99, 16.0))
    tpm.artifact = config_of(shape, gamma=0.95, gamma_steps=dial, max_steps=6, call_defaults=call_defaults("tinyworld"))
    pipe = load_pipeline("tinyworld", device="cpu")
    engine = PipelineEngine(pipe, tpm, slots=2, queue_limit=8, defaults=call_defaults("tinyworld"))
    with serving(engine, replace(CARD, gamma_conditioned=True), Settings()) as address, Client(address) as client:
        yield client


def said(client, **fields):
    """The fields of an answer that are the same every time."""
    if fields.get("stream"):
        with client.events(**{**BASE, **fields}) as source:
            return [(name, steady(data)) for name, data in source]
    answer = client.post("/v1/images/generations", json={**BASE, **fields})
    assert answer.status_code == 200, answer.text
    return steady(answer.json())


def steady(value):
    if isinstance(value, list):
        return [steady(one) for one in value]
    if isinstance(value, dict):
        kept = {name: steady(one) for name, one in value.items() if name not in VOLATILE}
        return kept if "url" not in kept else {**kept, "url": "an address"}
    return value


def test_the_tables_have_every_field():
    assert {*CHANGING, *REFUSED} == set(GenerationRequest.model_fields)


@pytest.mark.parametrize("field", CHANGING)
def test_every_accepted_field_changes_the_answer(client, field):
    more, one, other = CHANGING[field]
    first = said(client, **more, **{field: one})
    assert first == said(client, **more, **{field: one})
    assert first != said(client, **more, **{field: other})


@pytest.mark.parametrize("field", REFUSED)
def test_unsupported_values_are_refused(client, field):
    answer = client.post("/v1/images/generations", json={**BASE, field: REFUSED[field]})
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert error["param"] == field or field in error["message"]


@pytest.mark.parametrize("field", GenerationRequest.model_fields)
def test_null_is_the_same_as_a_missing_field(client, field):
    left_out = {name: value for name, value in {**BASE, "max_steps": 1}.items() if name != field}
    null, without = (client.post("/v1/images/generations", json=body) for body in ({**left_out, field: None}, left_out))
    assert null.status_code == without.status_code == (422 if field == "prompt" else 200)
    if field != "seed":  # which is drawn
        assert steady(null.json()) == steady(without.json())


def test_quality_has_no_effect_on_a_fixed_schedule(client):
    """Numbers are refused. Words, which clients send unasked, add a warning."""
    fixed = {"max_steps": None, "num_inference_steps": 2}
    answer = client.post("/v1/images/generations", json={**BASE, **fixed, "quality": 0.5})
    assert answer.status_code == 422
    assert "quality and num_inference_steps exclude each other" in answer.json()["error"]["message"]
    assert said(client, **fixed, quality="hd")["data"][0]["warnings"] == [
        "quality: num_inference_steps has no quality setting, and hd has no effect"
    ]
    assert "warnings" not in said(client, **fixed, quality="auto")["data"][0]


def test_the_old_name_of_a_field_still_works_and_its_warning_gives_the_new_one(client):
    common = {"max_steps": None, "seed": 5}
    old, new = (
        said(client, **common, **steps)["data"][0] for steps in ({"fixed_steps": 2}, {"num_inference_steps": 2})
    )
    assert old.pop("warnings") == [
        "fixed_steps: this field is now named num_inference_steps; the next version will refuse the old name"
    ]
    assert old == new


def test_a_word_of_quality_excludes_gamma_too(client):
    for word in ("hd", "auto"):
        answer = client.post("/v1/images/generations", json={**BASE, "gamma": 0.95, "quality": word})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "gamma")
