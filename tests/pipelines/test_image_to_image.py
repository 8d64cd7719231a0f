"""Image-to-image and inpainting start at the strength."""

import dataclasses

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tests.test_artifact import config_of
from tpdm.core.errors import BackboneError, ConfigError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.time_mapping import vp_times
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

CLASSES = {
    "SD3": StableDiffusion3Img2ImgPipeline,
    "FLUX.1 dev": FluxImg2ImgPipeline,
    "SD1.5": StableDiffusionImg2ImgPipeline,
    "SD3, inpainting": StableDiffusion3InpaintPipeline,
    "FLUX.1 dev, inpainting": FluxInpaintPipeline,
}


def sixteen_channels(components):
    """SD3's inpainting checks that there are so many, as in the published model."""
    torch.manual_seed(0)
    vae, transformer = components["vae"], components["transformer"]
    changed = {
        "vae": type(vae).from_config({**vae.config, "latent_channels": 16}),
        "transformer": type(transformer).from_config({**transformer.config, "in_channels": 16, "out_channels": 16}),
    }
    return {**components, **{name: part.eval() for name, part in changed.items()}}


def pipe_and_call(case, images=2):
    name, _, inpainting = case.partition(", ")
    source, family = tiny_pipe(name), FAMILIES[name]
    options = {"requires_safety_checker": False} if name == "SD1.5" else {}
    parts = sixteen_channels(source.components) if case == "SD3, inpainting" else source.components
    pipe = CLASSES[case](**parts, **options)
    pipe.set_progress_bar_config(disable=True)
    if name != "SD1.5":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()  # no shift: its times are k / N
    pictures = torch.rand(images, 3, 24, 16, generator=torch.Generator().manual_seed(7))
    call = {**family.text(images), **family.arguments(), "image": pictures, "strength": 0.6}
    if inpainting:
        call["mask_image"] = torch.zeros(images, 1, 24, 16)
        call["mask_image"][..., 8:] = 1.0  # the right half is made anew
    if name == "SD1.5":
        call = {key: value for key, value in call.items() if key not in ("height", "width")}
    return pipe, call


@pytest.mark.parametrize("name", CLASSES)
def test_a_fixed_schedule_from_the_strength_equals_the_stock_scheduler(name):
    pipe, call = pipe_and_call(name)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = pipe(**call, num_inference_steps=5, generator=generators)[0]
    times = vp_times(pipe.scheduler, 5) if name == "SD1.5" else pipe.scheduler.sigmas.tolist()
    output = attach(pipe, FixedSchedule(times[2:]))(**call, seeds=[0, 1])
    assert output.steps == [3, 3]
    assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("name", CLASSES)
def test_a_policy_starts_at_the_strength(name):
    pipe, call = pipe_and_call(name)
    output = attach(pipe, LookingPolicy())(**call, seeds=[0, 1])
    assert [times[0] for times in output.times] == pytest.approx([0.6, 0.6])
    assert [times[-1] for times in output.times] == [0.0, 0.0]
    with pytest.raises(ConfigError, match="t_start is 0"):
        attach(pipe, LookingPolicy())(**{**call, "strength": 0.0}, seeds=[0, 1])


@pytest.mark.parametrize("strength", [[0.6, 0.6], None, "0.6"])
def test_a_strength_is_one_number(strength):
    pipe, call = pipe_and_call("SD3")
    with pytest.raises(ConfigError, match=r"strength is .*\. It must be one number in \(0, 1\] for all images"):
        attach(pipe, LookingPolicy())(**{**call, "strength": strength}, seeds=[0, 1])


@pytest.mark.parametrize("name", CLASSES)
def test_a_single_step_goes_from_the_strength_to_the_image(name):
    pipe, call = pipe_and_call(name)
    output = attach(pipe, LookingPolicy(), max_steps=1)(**call, seeds=[0, 1])
    assert output.times == [[pytest.approx(0.6), 0.0]] * 2


@pytest.mark.parametrize("name", CLASSES)
def test_finished_images_do_not_change(name):
    pipe, call = pipe_and_call(name)
    lists = [[0.6, 0.3, 0.0], [0.6, 0.5, 0.4, 0.2, 0.0]]
    together = attach(pipe, FixedSchedule(lists))(**call, seeds=[0, 1])
    assert together.steps == [2, 4]
    one = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in call.items()}
    alone = attach(pipe, FixedSchedule(lists[0]))(**one, seeds=[0])
    torch.testing.assert_close(together.images[:1], alone.images, atol=1e-5, rtol=1e-5)


def test_denoising_start_is_refused():
    """SDXL's refiner would take it for the strength."""
    pipe = StableDiffusionXLImg2ImgPipeline(**tiny_pipe("SDXL").components, add_watermarker=False)
    call = {**FAMILIES["SDXL"].text(1), "image": torch.zeros(1, 3, 24, 16), "output_type": "latent"}
    with pytest.raises(BackboneError, match=r"denoising_start is 0\.6\. A policy cannot use this argument"):
        attach(pipe, LookingPolicy())(**call, denoising_start=0.6, seeds=[0])


def test_guided_features_of_a_pipeline_that_cannot_guide_are_conditional():
    """FLUX.1 Fill has no true_cfg_scale."""
    parts = {**tiny_pipe("FLUX.1 dev").components}
    config, channels = parts["transformer"].config, parts["transformer"].config.in_channels
    for name in ("image_encoder", "feature_extractor"):
        del parts[name]
    torch.manual_seed(0)
    # It reads latents, masked picture and mask.
    transformer = type(parts["transformer"]).from_config(config, in_channels=3 * channels, out_channels=channels)
    pipe = FluxFillPipeline(**{**parts, "transformer": transformer.eval()})
    pipe.set_progress_bar_config(disable=True)
    call = {**FAMILIES["FLUX.1 dev"].text(1), "height": 24, "width": 16, "output_type": "latent", "seeds": [0]}
    call |= {"image": torch.rand(1, 3, 24, 16), "mask_image": torch.ones(1, 1, 24, 16)}
    probe = LookingPolicy()
    attach(pipe, probe, max_steps=1)(**call)
    shape = TPMConfig(probe.seen[0].first_BDHW.shape[1], probe.seen[0].temb_BE.shape[1], channels=8, grid=2)
    times = []
    for features in ("conditional", "guided"):
        policy = TimePredictionModule(dataclasses.replace(shape, features=features), seed=1)
        times.append(attach(pipe, policy, max_steps=3)(**call).times)
    assert times[0] == times[1]


def test_only_arguments_that_the_pipeline_knows_come_from_training():
    """It was trained with a size, which SD1.5's image-to-image takes from the picture."""
    probe, (pipe, call) = LookingPolicy(), pipe_and_call("SD1.5", 1)
    attach(pipe, probe, max_steps=1)(**call)
    seen = probe.seen[0]
    policy = TimePredictionModule(TPMConfig(seen.first_BDHW.shape[1], seen.temb_BE.shape[1], channels=8, grid=2))
    size = {"height": 24, "width": 16}
    config = config_of(policy.shape, backbone_class="UNet2DConditionModel")
    policy.artifact = dataclasses.replace(config, call_defaults={"guidance_scale": 3.0, **size})
    driven = attach(pipe, policy, max_steps=3)
    assert driven.defaults == {"guidance_scale": 3.0}
    del call["guidance_scale"]
    output = driven(**call, seeds=[0])
    assert output.nfe_rows == 2 * output.steps[0]  # guided as in training
    for wrong in (lambda: driven(**call, **size), lambda: attach(pipe, policy, defaults=size)(**call)):
        with pytest.raises(BackboneError, match="height is not an argument of"):
            wrong()
