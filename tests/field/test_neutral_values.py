"""Explicit default values are accepted (https://github.com/vladmandic/sdnext/issues/2781).

Tools fill in every option: lists for several control networks, ``eta=0.0`` without stochastic steps.
"""

import numpy as np
import pytest
import torch
from diffusers import MultiControlNetModel, StableDiffusionControlNetPipeline

from tests.support.families import tiny_pipe
from tests.support.relatives import call_of, control_net, relative, stock
from tpdm.core.errors import BackboneError, ConfigError
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule

FIXED = FixedSchedule([1.0, 0.5, 0.0])


@pytest.fixture(scope="module")
def two_nets():
    net = control_net(tiny_pipe("SD1.5").unet)
    pipe = relative(StableDiffusionControlNetPipeline, "SD1.5", controlnet=MultiControlNetModel([net, net]))
    pictures = torch.rand(2, 1, 3, 24, 16, generator=torch.Generator().manual_seed(7))
    return pipe, call_of("SD1.5", 1, image=list(pictures), controlnet_conditioning_scale=[0.5, 0.7])


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_neutral_lists_of_several_control_networks_are_accepted(two_nets, kind):
    pipe, call = two_nets
    expected, times = stock(pipe, call, [0], steps=2)
    window = {"control_guidance_start": kind([0.0, 0.0]), "control_guidance_end": kind([1.0, 1.0])}
    driven = attach(pipe, FixedSchedule(times))(**call, **window, seeds=[0])
    assert (driven.images - expected).abs().max().item() == 0.0


def test_a_list_is_refused_for_one_of_its_values(two_nets):
    pipe, call = two_nets
    with pytest.raises(BackboneError, match=r"control_guidance_end is \[1\.0, 0\.5\]\. It must be 1 with a policy"):
        attach(pipe, FIXED)(**call, control_guidance_end=[1.0, 0.5], seeds=[0])


def test_options_with_neutral_values_are_accepted():
    plain = attach(tiny_pipe("SDXL"), FIXED)(**call_of("SDXL", 1), seeds=[0])
    said = attach(tiny_pipe("SDXL"), FIXED)(**call_of("SDXL", 1), eta=0.0, denoising_end=1.0, seeds=[0])
    assert torch.equal(said.images, plain.images)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"num_images_per_prompt": [1, 2]}, r"num_images_per_prompt is \[1, 2\]\. It must be one whole number"),
        ({"num_images_per_prompt": 0}, r"num_images_per_prompt is 0\. It must be one whole number"),
        ({"num_images_per_prompt": 1.5}, r"num_images_per_prompt is 1\.5\. It must be one whole number"),
        ({"max_steps": [2, 3]}, r"max_steps is \[2, 3\]. It must be a whole number of at least 1"),
        ({"max_steps": 2.5}, r"max_steps is 2\.5. It must be a whole number of at least 1"),
    ],
)
def test_a_list_instead_of_one_number_is_refused(option, match):
    with pytest.raises(ConfigError, match=match):
        attach(tiny_pipe("SD3"), FIXED)(**{**call_of("SD3", 1), "seeds": [0], **option})
