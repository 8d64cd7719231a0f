"""Options that are keyed on a fixed schedule, and the number of steps that a pipeline is told."""

import inspect

import pytest
from diffusers import (
    FluxControlNetPipeline,
    Lumina2Pipeline,
    PixArtAlphaPipeline,
    StableDiffusionPipeline,
    ZImagePipeline,
)

from tests.support.relatives import call_of, relative
from tpdm.core.errors import BackboneError
from tpdm.pipelines.arguments import told_steps, without_step_keys
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule


def told(cls, **arguments):
    return without_step_keys(arguments, inspect.signature(cls.__call__).parameters)


def test_a_pipeline_is_told_of_the_options_that_it_knows():
    assert told(Lumina2Pipeline) == told(Lumina2Pipeline, cfg_trunc_ratio=None) == {"cfg_trunc_ratio": 1.0}
    assert told(ZImagePipeline) == told(ZImagePipeline, cfg_truncation=1.0) == {"cfg_truncation": None}
    window = {"control_guidance_start": [0.0, 0.0], "control_guidance_end": (1, 1)}
    assert told(FluxControlNetPipeline, **window) == {**window, "control_guidance_end": [1, 1]}
    assert told(StableDiffusionPipeline) == {}


@pytest.mark.parametrize("value", [0.5, [1.0, 0.5], [[1.0], [0.5]], "late"])
def test_any_other_value_is_refused(value):
    with pytest.raises(BackboneError, match="expected 1 with a policy"):
        told(FluxControlNetPipeline, control_guidance_end=value)


def test_the_steps_that_are_told_leave_the_cap_after_the_strength_is_off():
    assert told_steps(28, None) == told_steps(28, 1.0) == 28
    assert told_steps(3, 0.6) == 5
    assert told_steps(1, None) == 2
    for hundredth in range(1, 100):
        for limit in (1, 2, 7, 28, 57, 100):
            strength = hundredth / 100
            assert int(told_steps(limit, strength) * strength) >= limit


def test_a_cap_of_one_is_no_sign_of_a_distilled_model():
    """PixArt-Alpha's pipeline takes one step for the mark of one, and reads what our scheduler does not give."""
    pipe = relative(PixArtAlphaPipeline, "PixArt-Sigma")
    assert attach(pipe, FixedSchedule([1.0, 0.0]), max_steps=1)(**call_of("PixArt-Sigma", 1), seeds=[0]).steps == [1]
