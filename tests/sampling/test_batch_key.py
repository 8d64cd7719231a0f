"""The batch key and the token grid of a call agree with the arguments that the denoiser gets."""

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.pipelines.registry import bind_arguments, find_denoiser, find_entry
from tpdm.sampling.batching.batch_key import batch_key, token_grid
from tpdm.sampling.batching.collate import CallSigner

UNKNOWN = {"Wan 2.1"}  # frames count as height
SCALES = (0.0, 0.5, 1.0, 1.5, 4.0)


class Stopped(Exception):
    pass


def first_call(name, **arguments):
    """Arguments of the first denoiser call, and its signature."""
    pipe, family, found = tiny_pipe(name), FAMILIES[name], []
    denoiser = find_denoiser(pipe)

    def stop(module, args, kwargs):
        found.append(dict(bind_arguments(module, args, kwargs).arguments))
        raise Stopped

    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with pytest.raises(Stopped), torch.no_grad():
            pipe(**family.text(1), **{**family.arguments(), **arguments})
    finally:
        handle.remove()
    return found[0], CallSigner(find_entry(denoiser)).sign(found[0]).signature


@pytest.mark.parametrize("name", FAMILIES)
def test_the_token_grid_is_that_of_the_call(name):
    pipe, family = tiny_pipe(name), FAMILIES[name]
    denoiser = find_denoiser(pipe)
    for size in ({}, {"height": family.call["height"] * 2}):
        arguments = {**family.arguments(), **size}
        expected = find_entry(denoiser).grid(first_call(name, **size)[0], denoiser)
        assert token_grid(pipe, arguments) == (None if name in UNKNOWN else expected)


@pytest.mark.parametrize("name", ["SD3", "FLUX.1 dev", "SD1.5", "SDXL"])
def test_the_default_size_is_that_of_the_pipeline(name):
    pipe = tiny_pipe(name)
    sizes = {"height": None, "width": None}
    expected = find_entry(find_denoiser(pipe)).grid(first_call(name, **sizes)[0], find_denoiser(pipe))
    assert token_grid(pipe, sizes) == token_grid(pipe, {}) == expected


def test_sizes_that_round_to_the_same_latents_have_equal_keys():
    sizes = [{"height": 48, "width": 32}, {"height": 48, "width": 33}, {"height": 48, "width": 64}]
    first, same, other = (batch_key(tiny_pipe("FLUX.1 dev"), size) for size in sizes)
    assert first == same != other


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_scales_have_equal_keys_if_their_calls_can_be_merged(name):
    """And different keys if their calls cannot be merged."""
    pipe, argument = tiny_pipe(name), find_entry(find_denoiser(tiny_pipe(name))).guidance_scale
    keys = [batch_key(pipe, {**FAMILIES[name].arguments(), argument: scale}) for scale in SCALES]
    signatures = [first_call(name, **{argument: scale})[1] for scale in SCALES]
    assert [key == keys[0] for key in keys] == [one == signatures[0] for one in signatures]
    assert [key == keys[-1] for key in keys] == [one == signatures[-1] for one in signatures]


def test_the_key_contains_the_requested_size_if_the_pipeline_uses_a_table_of_sizes():
    pipe = tiny_pipe("Sana")
    assert token_grid(pipe, {"height": 1000, "width": 1000}) is None
    assert batch_key(pipe, {"height": 1000, "width": 1000}) != batch_key(pipe, {"height": 1000, "width": 1024})
