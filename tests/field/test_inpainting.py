"""Inpainting leaves no noise in the kept area (https://github.com/huggingface/diffusers/issues/3880).

Inpainting pipelines add noise of the next timestep to the kept area, except after the last timestep. With a policy, the
number of timesteps is only a maximum, and each image has its own last step.
"""

import pytest
import torch
from diffusers import (
    FluxControlInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxTransformer2DModel,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    ZImageInpaintPipeline,
)

from tests.support.families import tiny_pipe
from tests.support.relatives import call_of, control_net, relative, stock
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule

CASES = {
    "SD1.5": StableDiffusionInpaintPipeline,
    "SDXL": StableDiffusionXLInpaintPipeline,
    "SD1.5, control": StableDiffusionControlNetInpaintPipeline,
    "FLUX.1 dev, control": FluxControlInpaintPipeline,
    "FLUX.1 dev, reference": FluxKontextInpaintPipeline,
    "Z-Image": ZImageInpaintPipeline,
}
SEEDS = [0, 1]


def pipe_and_call(case):
    """The left half of two images is kept."""
    name, _, more = case.partition(", ")
    pictures = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(7))
    masks = torch.zeros(2, 1, 24, 16)
    masks[..., 8:] = 1.0
    call, parts = call_of(name, image=pictures, mask_image=masks, strength=1.0), {}
    if more == "control":
        call["control_image"] = pictures.flip(-1)
        if name == "SD1.5":
            parts["controlnet"] = control_net(tiny_pipe(name).unet)
        else:
            config = tiny_pipe(name).transformer.config
            torch.manual_seed(0)
            parts["transformer"] = FluxTransformer2DModel.from_config(config, in_channels=32, out_channels=16).eval()
    if more == "reference":
        call |= {"_auto_resize": False, "max_area": 24 * 16}
    return relative(CASES[case], name, **parts), call


@pytest.mark.parametrize("case", CASES)
def test_the_kept_area_has_as_little_noise_as_in_the_stock_pipeline(case):
    pipe, call = pipe_and_call(case)
    expected, times = stock(pipe, call, SEEDS, steps=2)
    for cap in (2, 28):
        output = attach(pipe, FixedSchedule(times), max_steps=cap)(**call, seeds=SEEDS)
        assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("case", CASES)
def test_the_kept_area_of_a_finished_image_stays_without_noise(case):
    pipe, call = pipe_and_call(case)
    expected, times = stock(pipe, call, SEEDS, steps=2)
    output = attach(pipe, FixedSchedule([times, [1.0, 0.7, 0.3, 0.0]]))(**call, seeds=SEEDS)
    assert output.steps == [len(times) - 1, 3]
    torch.testing.assert_close(output.images[0], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["SD1.5", "SDXL", "FLUX.1 dev, reference"])
def test_a_weak_strength_under_a_low_cap_is_a_single_step(case):
    """The pipelines multiply the number of steps by the strength, and refuse to run if none is left."""
    pipe, call = pipe_and_call(case)
    policy = FixedSchedule([0.2, 0.0])
    assert attach(pipe, policy, max_steps=1)(**{**call, "strength": 0.2}, seeds=SEEDS).steps == [1, 1]


def test_fixed_times_must_start_at_the_strength():
    """SDXL's inpainting pipeline has a default strength of 0.9999."""
    pipe, call = pipe_and_call("SDXL")
    del call["strength"]
    with pytest.raises(BackboneError, match=r"starts at step 1 .* pass strength=1\.0"):
        attach(pipe, FixedSchedule([1.0, 0.5, 0.0]))(**call, seeds=SEEDS)
