"""Image-to-image: the chain starts at the strength."""

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tpdm.pipelines.attach import attach
from tpdm.pipelines.axis import vp_times
from tpdm.schedules import FixedTimes
from tpdm.types import ConfigError

CLASSES = {
    "SD3.5": StableDiffusion3Img2ImgPipeline,
    "FLUX.1 dev": FluxImg2ImgPipeline,
    "SD1.5": StableDiffusionImg2ImgPipeline,
}


def pipe_and_call(name, images=2):
    source, family = tiny_pipe(name), FAMILIES[name]
    options = {"requires_safety_checker": False} if name == "SD1.5" else {}
    pipe = CLASSES[name](**source.components, **options)
    pipe.set_progress_bar_config(disable=True)
    if name != "SD1.5":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()  # no shift: its times are k / N
    pictures = torch.rand(images, 3, 24, 16, generator=torch.Generator().manual_seed(7))
    call = {**family.text(images), **family.arguments(), "image": pictures, "strength": 0.6}
    if name == "SD1.5":
        call = {key: value for key, value in call.items() if key not in ("height", "width")}
    return pipe, call


@pytest.mark.parametrize("name", CLASSES)
def test_a_fixed_list_from_the_strength_is_the_stock_scheduler(name):
    pipe, call = pipe_and_call(name)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = pipe(**call, num_inference_steps=5, generator=generators)[0]
    times = vp_times(pipe.scheduler, 5) if name == "SD1.5" else pipe.scheduler.sigmas.tolist()
    output = attach(pipe, FixedTimes(times[2:]))(**call, seeds=[0, 1])
    assert output.steps == [3, 3]
    assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("name", CLASSES)
def test_a_policy_starts_at_the_strength(name):
    pipe, call = pipe_and_call(name)
    output = attach(pipe, LookingPolicy())(**call, seeds=[0, 1])
    assert [times[0] for times in output.times] == pytest.approx([0.6, 0.6])
    assert [times[-1] for times in output.times] == [0.0, 0.0]
    with pytest.raises(ConfigError, match="got t_start 0"):
        attach(pipe, LookingPolicy())(**{**call, "strength": 0.0}, seeds=[0, 1])
