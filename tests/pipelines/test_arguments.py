"""Step-keyed options, and the number of steps that a pipeline is asked for."""

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
from tpdm.pipelines.arguments import requested_steps, step_keyed_arguments
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule


def told(cls, **arguments):
    return step_keyed_arguments(arguments, inspect.signature(cls.__call__).parameters)


def test_step_keyed_options_of_the_pipeline_are_passed():
    assert told(Lumina2Pipeline) == told(Lumina2Pipeline, cfg_trunc_ratio=None) == {"cfg_trunc_ratio": 1.0}
    assert told(ZImagePipeline) == told(ZImagePipeline, cfg_truncation=1.0) == {"cfg_truncation": None}
    window = {"control_guidance_start": [0.0, 0.0], "control_guidance_end": (1, 1)}
    assert told(FluxControlNetPipeline, **window) == {**window, "control_guidance_end": [1, 1]}
    assert told(StableDiffusionPipeline) == {}


@pytest.mark.parametrize("value", [0.5, [1.0, 0.5], [[1.0], [0.5]], "late"])
def test_other_values_of_step_keyed_options_are_refused(value):
    with pytest.raises(BackboneError, match="It must be 1 with a policy"):
        told(FluxControlNetPipeline, control_guidance_end=value)


def test_requested_steps_leave_max_steps_after_the_strength_is_applied():
    assert requested_steps(28, None) == requested_steps(28, 1.0) == 28
    assert requested_steps(3, 0.6) == 5
    assert requested_steps(1, None) == 2
    for hundredth in range(1, 100):
        for limit in (1, 2, 7, 28, 57, 100):
            strength = hundredth / 100
            assert int(requested_steps(limit, strength) * strength) >= limit


def test_max_steps_of_one_does_not_select_the_distilled_code_path():
    """At one step, PixArt-Alpha's pipeline assumes a distilled model and reads attributes that our scheduler lacks."""
    pipe = relative(PixArtAlphaPipeline, "PixArt-Sigma")
    assert attach(pipe, FixedSchedule([1.0, 0.0]), max_steps=1)(**call_of("PixArt-Sigma", 1), seeds=[0]).steps == [1]
