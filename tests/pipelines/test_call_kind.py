"""What is told of a call from its arguments is what the denoiser gets."""

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.pipelines.registry import bind_arguments, find_denoiser, find_entry
from tpdm.sampling.batching.batch_key import batch_key, token_grid
from tpdm.sampling.batching.collate import CallSigner

UNTOLD = {"Wan 2.1"}  # frames count as height
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
    return found[0], CallSigner(find_entry(denoiser)).read(found[0]).signature


@pytest.mark.parametrize("name", FAMILIES)
def test_the_grid_is_that_of_the_call(name):
    pipe, family = tiny_pipe(name), FAMILIES[name]
    denoiser = find_denoiser(pipe)
    for size in ({}, {"height": family.call["height"] * 2}):
        arguments = {**family.arguments(), **size}
        expected = find_entry(denoiser).grid(first_call(name, **size)[0], denoiser)
        assert token_grid(pipe, arguments) == (None if name in UNTOLD else expected)


@pytest.mark.parametrize("name", ["SD3", "FLUX.1 dev", "SD1.5", "SDXL"])
def test_a_size_that_is_left_out_is_the_pipelines_own(name):
    pipe = tiny_pipe(name)
    sizes = {"height": None, "width": None}
    expected = find_entry(find_denoiser(pipe)).grid(first_call(name, **sizes)[0], find_denoiser(pipe))
    assert token_grid(pipe, sizes) == token_grid(pipe, {}) == expected


def test_a_size_that_is_rounded_is_another_name_for_the_same():
    sizes = [{"height": 48, "width": 32}, {"height": 48, "width": 33}, {"height": 48, "width": 64}]
    first, same, other = (batch_key(tiny_pipe("FLUX.1 dev"), size) for size in sizes)
    assert first == same != other


@pytest.mark.parametrize("name", FAMILIES)
def test_scales_of_guidance_whose_calls_meet_are_of_one_kind(name):
    """And those whose calls cannot meet are of two."""
    pipe, argument = tiny_pipe(name), find_entry(find_denoiser(tiny_pipe(name))).guidance_scale
    kinds = [batch_key(pipe, {**FAMILIES[name].arguments(), argument: scale}) for scale in SCALES]
    signatures = [first_call(name, **{argument: scale})[1] for scale in SCALES]
    assert [kind == kinds[0] for kind in kinds] == [one == signatures[0] for one in signatures]
    assert [kind == kinds[-1] for kind in kinds] == [one == signatures[-1] for one in signatures]


def test_where_a_table_of_sizes_decides_the_size_is_as_it_was_asked_for():
    pipe = tiny_pipe("Sana")
    assert token_grid(pipe, {"height": 1000, "width": 1000}) is None
    assert batch_key(pipe, {"height": 1000, "width": 1000}) != batch_key(pipe, {"height": 1000, "width": 1024})
