"""What users of SD3 and FLUX.1 combine with a policy: all of it as in the stock pipeline."""

import copy

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tpdm.pipelines.attach import attach
from tpdm.pipelines.axis import vp_times
from tpdm.pipelines.backbones import find_denoiser, find_entry
from tpdm.schedules import FixedTimes

NAMES = ["SD3", "FLUX.1 dev"]
SIZES = [{"height": 16, "width": 48}, {"height": 40, "width": 8}]
TIMES = [1.0, 0.7, 0.3, 0.0]


def call_of(name, images=2, **more):
    return {**FAMILIES[name].text(images), **FAMILIES[name].arguments(), **more}


def stock(pipe, call, seeds):
    """Latents and times of the unmodified pipeline."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = pipe(**call, num_inference_steps=4, generator=generators)[0]
    if find_entry(find_denoiser(pipe)).path == "vp":
        return latents, vp_times(pipe.scheduler, 4)
    return latents, pipe.scheduler.sigmas.tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_any_aspect_ratio(name, size):
    pipe, call = tiny_pipe(name), call_of(name, **size)
    expected, times = stock(pipe, call, [0, 1])
    output = attach(pipe, FixedTimes(times))(**call, seeds=[0, 1])
    assert output.steps == [4, 4]
    assert (output.images - expected).abs().max().item() == 0.0


# Only these repeat all embeddings that are passed; test_parity has SD3 with its text encoders.
@pytest.mark.parametrize("name", ["FLUX.2", "Qwen-Image", "Sana", "Z-Image", "SD1.5", "SDXL", "PixArt-Sigma"])
def test_several_images_per_prompt(name):
    pipe, call = tiny_pipe(name), call_of(name, num_images_per_prompt=2)
    expected, times = stock(pipe, call, range(4))
    output = attach(pipe, FixedTimes(times))(**call, seeds=range(4))
    assert (output.images - expected).abs().max().item() == 0.0
    uneven = attach(pipe, FixedTimes([TIMES, [1.0, 0.0], times, [0.9, 0.4, 0.0]]))(**call, seeds=range(4))
    assert uneven.steps == [3, 1, 4, 2]
    scale = expected.abs().max().item()
    assert (uneven.images[2] - expected[2]).abs().max().item() <= FAMILIES[name].tolerance * max(1.0, scale)


@pytest.mark.parametrize("name", NAMES)
def test_bf16(name):
    pipe = copy.deepcopy(tiny_pipe(name)).to(torch.bfloat16)
    call = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in call_of(name).items()}
    expected, times = stock(pipe, call, [0, 1])
    output = attach(pipe, FixedTimes(times))(**call, seeds=[0, 1])
    assert output.images.dtype == torch.bfloat16
    assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_callbacks_see_the_times_of_every_image(name):
    seen = []

    def look(pipe, i, t, tensors):
        seen.append((t / 1000).tolist())
        return {}

    lists = [[1.0, 0.5, 0.0], TIMES]
    attach(tiny_pipe(name), FixedTimes(lists))(**call_of(name), callback_on_step_end=look)
    assert seen == [pytest.approx(t) for t in ([1.0, 1.0], [0.5, 0.7], [0.0, 0.3])]


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_whose_blocks_are_compiled(name):
    pipe = copy.deepcopy(tiny_pipe(name))
    expected = attach(pipe, LookingPolicy(), max_steps=4)(**call_of(name), seeds=[0, 1])
    for block in find_denoiser(pipe).transformer_blocks:
        block.compile(backend="eager")
    for _ in range(2):
        output = attach(pipe, LookingPolicy(), max_steps=4)(**call_of(name), seeds=[0, 1])
        assert output.steps == expected.steps
        torch.testing.assert_close(output.images, expected.images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_lora_is_used(name):
    peft = pytest.importorskip("peft")
    pipe = copy.deepcopy(tiny_pipe(name))
    plain = attach(pipe, FixedTimes(TIMES))(**call_of(name), seeds=[0, 1]).images
    # Weights of the last layer too, where a hook sits.
    find_denoiser(pipe).add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "proj_out"], init_lora_weights="gaussian")
    )
    for key, weight in find_denoiser(pipe).named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight.data, std=0.3)
    expected, times = stock(pipe, call_of(name), [0, 1])
    output = attach(pipe, FixedTimes(times))(**call_of(name), seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    assert not torch.allclose(output.images, plain)
    assert attach(pipe, LookingPolicy(), max_steps=3)(**call_of(name), seeds=[0, 1]).steps
