"""What users of SD3 and FLUX.1 combine with a policy: all of it as in the stock pipeline."""

import copy

import pytest
import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
)
from diffusers.hooks import FirstBlockCacheConfig

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.feature_hooks import compile_denoiser
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.pipelines.time_mapping import flow_times, vp_times
from tpdm.policies.fixed import FixedSchedule

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
    return latents, flow_times(pipe.scheduler)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_any_aspect_ratio(name, size):
    pipe, call = tiny_pipe(name), call_of(name, **size)
    expected, times = stock(pipe, call, [0, 1])
    output = attach(pipe, FixedSchedule(times))(**call, seeds=[0, 1])
    assert output.steps == [4, 4]
    assert (output.images - expected).abs().max().item() == 0.0


# Only these repeat all embeddings that are passed. test_prompt_embeddings has all families with their text encoders.
@pytest.mark.parametrize("name", ["FLUX.2", "Qwen-Image", "Sana", "Z-Image", "SD1.5", "SDXL", "PixArt-Sigma"])
def test_several_images_per_prompt(name):
    pipe, call = tiny_pipe(name), call_of(name, num_images_per_prompt=2)
    expected, times = stock(pipe, call, range(4))
    output = attach(pipe, FixedSchedule(times))(**call, seeds=range(4))
    assert (output.images - expected).abs().max().item() == 0.0
    uneven = attach(pipe, FixedSchedule([TIMES, [1.0, 0.0], times, [0.9, 0.4, 0.0]]))(**call, seeds=range(4))
    assert uneven.steps == [3, 1, len(times) - 1, 2]
    scale = expected.abs().max().item()
    assert (uneven.images[2] - expected[2]).abs().max().item() <= FAMILIES[name].tolerance * max(1.0, scale)


@pytest.mark.parametrize("name", NAMES)
def test_bf16(name):
    pipe = copy.deepcopy(tiny_pipe(name)).to(torch.bfloat16)
    call = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in call_of(name).items()}
    expected, times = stock(pipe, call, [0, 1])
    output = attach(pipe, FixedSchedule(times))(**call, seeds=[0, 1])
    assert output.images.dtype == torch.bfloat16
    assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_callbacks_see_the_times_of_every_image(name):
    seen = []

    def look(pipe, i, t, tensors):
        seen.append((t / 1000).tolist())
        return {}

    lists = [[1.0, 0.5, 0.0], TIMES]
    attach(tiny_pipe(name), FixedSchedule(lists))(**call_of(name), callback_on_step_end=look)
    assert seen == [pytest.approx(t) for t in ([1.0, 1.0], [0.5, 0.7], [0.0, 0.3])]


@pytest.mark.parametrize("name", NAMES)
def test_a_callback_changes_finished_images_once(name):
    def change(pipe, i, t, tensors):
        return {"latents": tensors["latents"] + 0.1}

    lists = [[1.0, 0.5, 0.0], TIMES]
    together = attach(tiny_pipe(name), FixedSchedule(lists))(**call_of(name), callback_on_step_end=change, seeds=[0, 1])
    alone = attach(tiny_pipe(name), FixedSchedule(lists[0]))(**call_of(name, 1), callback_on_step_end=change, seeds=[0])
    torch.testing.assert_close(together.images[:1], alone.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_whose_blocks_are_compiled(name):
    pipe = copy.deepcopy(tiny_pipe(name))
    fixed = FixedSchedule([TIMES, [1.0, 0.5, 0.0]])
    expected = [attach(pipe, policy, max_steps=4)(**call_of(name), seeds=[0, 1]) for policy in (LookingPolicy(), fixed)]
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")
    # Twice: what was compiled for one call must not see the hooks of it in the next.
    for policy, uncompiled in zip([LookingPolicy(), fixed] * 2, expected * 2, strict=True):
        output = attach(pipe, policy, max_steps=4)(**call_of(name), seeds=[0, 1])
        assert output.steps == uncompiled.steps
        assert output.nfe_rows == uncompiled.nfe_rows
        torch.testing.assert_close(output.images, uncompiled.images, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_fully_compiled_denoiser_with_its_hooks():
    pipe, call = copy.deepcopy(tiny_pipe("SD3")), call_of("SD3")
    fixed, before, after = FixedSchedule([TIMES, [1.0, 0.5, 0.0]]), LookingPolicy(), LookingPolicy()
    attach(pipe, before, max_steps=2)(**call, seeds=[0, 1])
    expected = attach(pipe, fixed, max_steps=3)(**call, seeds=[0, 1])
    compile_denoiser(pipe, backend="eager")  # fullgraph: a hook that broke the graph would be an error
    for _ in range(2):
        output = attach(pipe, fixed, max_steps=3)(**call, seeds=[0, 1])
        assert (output.steps, output.nfe_rows) == (expected.steps, expected.nfe_rows)
        torch.testing.assert_close(output.images, expected.images, atol=1e-5, rtol=0)
    attach(pipe, after, max_steps=2)(**call, seeds=[0, 1])
    for seen, uncompiled in zip(after.seen, before.seen, strict=True):
        for part in ("first_BDHW", "last_BDHW", "temb_BE"):
            torch.testing.assert_close(getattr(seen, part), getattr(uncompiled, part), atol=1e-5, rtol=0)


def test_a_fully_compiled_denoiser_without_hooks_is_refused():
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    attached_before = attach(pipe, LookingPolicy())
    whole = copy.deepcopy(pipe.transformer)
    pipe.transformer.compile(backend="eager")
    for refused in (lambda: attach(pipe, LookingPolicy()), lambda: attached_before(**call_of("SD3"))):
        with pytest.raises(BackboneError, match=r"compile_denoiser\(pipe\), or each of its blocks"):
            refused()
    pipe.transformer = torch.compile(whole, backend="eager")
    with pytest.raises(BackboneError, match=r"compile_denoiser\(pipe\), or each of its blocks"):
        attach(pipe, LookingPolicy())


def test_a_denoiser_that_caches_between_steps_is_refused():
    """Also when it was told to after ``attach``; without its cache it is taken again."""
    pipe = copy.deepcopy(tiny_pipe("FLUX.1 dev"))
    attached_before = attach(pipe, FixedSchedule([[1.0, 0.5, 0.0], TIMES]))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=5.0))
    for refused in (lambda: attach(pipe, LookingPolicy()), lambda: attached_before(**call_of("FLUX.1 dev"))):
        with pytest.raises(BackboneError, match=r"caches between steps.*disable_cache\(\) first") as caught:
            refused()
        assert "\n" not in str(caught.value)
    pipe.transformer.disable_cache()
    assert attached_before(**call_of("FLUX.1 dev")).steps == [2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_from_a_file_is_used(name, tmp_path):
    peft = pytest.importorskip("peft")
    trained, pipe = copy.deepcopy(tiny_pipe(name)), copy.deepcopy(tiny_pipe(name))
    denoiser = find_denoiser(trained)
    denoiser.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"]))
    torch.manual_seed(2)
    for key, weight in denoiser.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight.data, std=0.3)
    layers = peft.get_peft_model_state_dict(denoiser)
    type(pipe).save_lora_weights(tmp_path, transformer_lora_layers=layers)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    plain = attach(pipe, FixedSchedule(TIMES))(**call_of(name), seeds=[0, 1]).images
    file = next(tmp_path.iterdir()).name  # which older versions of diffusers do not look for offline
    pipe.load_lora_weights(tmp_path, weight_name=file, adapter_name="style")
    expected, times = stock(pipe, call_of(name), [0, 1])
    output = attach(pipe, FixedSchedule(times))(**call_of(name), seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    assert not torch.allclose(output.images, plain)
    same = attach(trained, FixedSchedule(times))(**call_of(name), seeds=[0, 1]).images
    torch.testing.assert_close(output.images, same, atol=1e-6, rtol=0)
    pipe.unload_lora_weights()
    assert torch.equal(attach(pipe, FixedSchedule(TIMES))(**call_of(name), seeds=[0, 1]).images, plain)


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # of diffusers' own control network
def test_finished_images_are_removed_from_the_control_inputs_of_flux():
    source = tiny_pipe("FLUX.1 dev")
    torch.manual_seed(1)
    controlnet = FluxControlNetModel.from_transformer(
        source.transformer,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        load_weights_from_transformer=False,
    ).eval()
    for blocks in (controlnet.controlnet_blocks, controlnet.controlnet_single_blocks):
        for parameter in blocks.parameters():
            torch.nn.init.normal_(parameter, std=0.1)  # they start at zero: no control
    pipe = FluxControlNetPipeline(**source.components, controlnet=controlnet)
    pipe.set_progress_bar_config(disable=True)
    call = call_of("FLUX.1 dev", control_image=torch.rand(2, 3, 24, 16), controlnet_conditioning_scale=0.7)
    expected, times = stock(pipe, call, [0, 1])
    output = attach(pipe, FixedSchedule(times))(**call, seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    without = stock(source, call_of("FLUX.1 dev"), [0, 1])[0]
    assert not torch.allclose(expected, without, atol=1e-3)
    uneven = attach(pipe, FixedSchedule([times, [1.0, 0.5, 0.0]]))(**call, seeds=[0, 1])
    assert uneven.nfe_rows == 4 + 2
    torch.testing.assert_close(uneven.images[0], expected[0], atol=1e-5, rtol=0)


def test_finished_images_are_removed_from_the_control_inputs():
    source = tiny_pipe("SD3")
    torch.manual_seed(1)
    controlnet = SD3ControlNetModel.from_transformer(
        source.transformer, num_layers=2, num_extra_conditioning_channels=0, load_weights_from_transformer=False
    ).eval()
    for parameter in controlnet.controlnet_blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # they start at zero: no control
    pipe = StableDiffusion3ControlNetPipeline(**source.components, controlnet=controlnet)
    pipe.set_progress_bar_config(disable=True)
    call = call_of("SD3", control_image=torch.rand(2, 3, 24, 16), controlnet_conditioning_scale=0.7)
    expected, times = stock(pipe, call, [0, 1])
    output = attach(pipe, FixedSchedule(times))(**call, seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    uneven = attach(pipe, FixedSchedule([times, [1.0, 0.5, 0.0]]))(**call, seeds=[0, 1])
    assert uneven.nfe_rows == 2 * (4 + 2)
    torch.testing.assert_close(uneven.images[0], expected[0], atol=1e-5, rtol=0)
    with pytest.raises(BackboneError, match=r"control_guidance_end is 0\.5"):
        attach(pipe, FixedSchedule(times))(**call, control_guidance_end=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_lora_is_used(name):
    peft = pytest.importorskip("peft")
    pipe = copy.deepcopy(tiny_pipe(name))
    plain = attach(pipe, FixedSchedule(TIMES))(**call_of(name), seeds=[0, 1]).images
    # Weights of the last layer too, where a hook sits.
    find_denoiser(pipe).add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "proj_out"], init_lora_weights="gaussian")
    )
    for key, weight in find_denoiser(pipe).named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight.data, std=0.3)
    expected, times = stock(pipe, call_of(name), [0, 1])
    output = attach(pipe, FixedSchedule(times))(**call_of(name), seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    assert not torch.allclose(output.images, plain)
    assert attach(pipe, LookingPolicy(), max_steps=3)(**call_of(name), seeds=[0, 1]).steps
