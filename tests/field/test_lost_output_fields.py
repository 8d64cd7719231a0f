"""Output fields of a pipeline other than its images reach the user.

The safety checker flagged a user's image and made it black, without a message.
https://github.com/huggingface/diffusers/issues/4906
"""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.tiny_texts import make_speaking_pipe, spoken_arguments
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.generate import sample_to_folder
from tpdm.sampling.samplers import PipelineSampler

TIMES = FixedSchedule([1.0, 0.5, 0.0])


class Pixels(dict):  # type: ignore[type-arg]
    """What a feature extractor gives."""

    pixel_values = torch.zeros(2, 3, 4, 4)

    def to(self, *_: Any) -> Pixels:
        return self


def flag_last(images: Any, clip_input: Any) -> tuple[Any, list[bool]]:
    """A safety checker that makes the last image black."""
    images[-1] = images[-1] * 0
    return images, [False] * (len(images) - 1) + [True]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe = make_speaking_pipe("SD1.5", tmp_path_factory.mktemp("tokenizer"))
    pipe.safety_checker, pipe.feature_extractor = flag_last, lambda *_, **__: Pixels()
    return pipe


def arguments() -> dict[str, Any]:
    return {**defaults(), "output_type": "pil"}


def defaults() -> dict[str, Any]:
    return {name: value for name, value in spoken_arguments("SD1.5").items() if name != "output_type"}


def test_flags_equal_those_of_the_stock_pipeline(checked: Any) -> None:
    generators = [torch.Generator().manual_seed(s) for s in (0, 1)]
    stock = checked(["abc", "zyx"], num_inference_steps=2, generator=generators, **arguments())
    out = attach(checked, TIMES)(["abc", "zyx"], seeds=[0, 1], **arguments())
    assert out.nsfw_content_detected == stock.nsfw_content_detected == [False, True]
    assert [int(np.asarray(image).max()) == 0 for image in out.images] == [False, True]


def test_a_checker_set_after_attach_is_used(checked: Any) -> None:
    pipe = copy.copy(checked)
    pipe.safety_checker = None
    fast = attach(pipe, TIMES)
    assert fast("abc", seeds=[0], **arguments()).nsfw_content_detected is None
    pipe.safety_checker = flag_last
    assert fast("abc", seeds=[0], **arguments()).nsfw_content_detected == [True]


@pytest.mark.parametrize("tpm", [TIMES, None])
def test_samples_jsonl_contains_the_flags(
    checked: Any, tpm: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpdm.pipelines.loading.load.load_pipeline", lambda *_, **__: checked)
    steps = 2 if tpm is None else None
    told: list[dict[str, Any]] = []
    sample_to_folder(
        "any", tpm, ["abc", "zyx"], 0, tmp_path, num_inference_steps=steps, defaults=defaults(), callback=told.append
    )
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["nsfw_content_detected"] for line in lines] == [False, True]
    assert told == lines


def test_training_warns_about_black_images(checked: Any, caplog: pytest.LogCaptureFixture) -> None:
    sampler = PipelineSampler(attach(checked, TIMES), 4, defaults())
    with caplog.at_level(logging.WARNING):
        images = sampler(SampleRequest(["abc", "zyx"], [0, 1])).images_B3HW
    assert float(images[1].max()) == 0.0
    assert "flagged 1 of 2 images" in caplog.text


def test_every_other_field_is_kept() -> None:
    """All fields of a pipeline's output class are kept."""
    pipe, family = copy.copy(tiny_pipe("SD1.5")), FAMILIES["SD1.5"]
    cls = type(pipe)

    class Deep(cls):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(*args, **kwargs)
            output["depth"] = ["near"]
            return output

    Deep.__call__.__signature__ = __import__("inspect").signature(cls.__call__)  # type: ignore[attr-defined]
    pipe.__class__ = Deep
    out = attach(pipe, TIMES)(**family.text(1), **family.arguments(), seeds=[0])
    assert out.others == {"depth": ["near"]}
