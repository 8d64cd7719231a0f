"""Users inpaint and find noise in the area that was to be kept (https://github.com/huggingface/diffusers/issues/3880).

Inpainting pipelines bring the kept area to the noise of the next timestep, and leave it clean after the last one, which
they know by the number of timesteps. With a policy that number is the cap, and each image ends when it ends.
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
    """The left half of two pictures is kept."""
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
def test_the_kept_area_is_as_clean_as_the_stock_pipeline_leaves_it(case):
    pipe, call = pipe_and_call(case)
    expected, times = stock(pipe, call, SEEDS, steps=2)
    for cap in (2, 28):
        output = attach(pipe, FixedSchedule(times), max_steps=cap)(**call, seeds=SEEDS)
        assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("case", CASES)
def test_an_image_that_ends_early_keeps_its_area_clean_while_others_go_on(case):
    pipe, call = pipe_and_call(case)
    expected, times = stock(pipe, call, SEEDS, steps=2)
    output = attach(pipe, FixedSchedule([times, [1.0, 0.7, 0.3, 0.0]]))(**call, seeds=SEEDS)
    assert output.steps == [len(times) - 1, 3]
    torch.testing.assert_close(output.images[0], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["SD1.5", "SDXL", "FLUX.1 dev, reference"])
def test_a_weak_strength_under_a_low_cap_is_a_single_step(case):
    """The pipelines take the strength off the number of steps, and refuse to run where none is left."""
    pipe, call = pipe_and_call(case)
    policy = FixedSchedule([0.2, 0.0])
    assert attach(pipe, policy, max_steps=1)(**{**call, "strength": 0.2}, seeds=SEEDS).steps == [1, 1]


def test_a_strength_that_the_fixed_times_do_not_start_at_is_refused():
    """SDXL's inpainting pipeline has a strength of 0.9999 unless it is told another."""
    pipe, call = pipe_and_call("SDXL")
    del call["strength"]
    with pytest.raises(BackboneError, match=r"got a start at step 1 .* pass strength=1\.0"):
        attach(pipe, FixedSchedule([1.0, 0.5, 0.0]))(**call, seeds=SEEDS)
