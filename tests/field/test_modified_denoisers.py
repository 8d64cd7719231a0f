"""Denoisers that other tools have modified work, or are refused with the reason.

A helper that wraps ``forward`` without ``functools.wraps`` led to ``KeyError: 'sample'``. A cache that counts calls led
to an error about tensor sizes. https://github.com/vllm-project/vllm-omni/issues/2240
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.registry import find_denoiser, forward_signature
from tpdm.policies.fixed import FixedSchedule
from tpdm.sampling.batching.pipeline import BatchedPipeline

FOUR = ("SD1.5", "SD3", "Z-Image", "Qwen-Image")


def call(name: str, images: int) -> dict[str, Any]:
    family = FAMILIES[name]
    return {**family.text(images), **family.arguments()}


def wrap(denoiser: Any) -> None:
    original = denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    denoiser.forward = forward


@pytest.mark.parametrize("name", FOUR)
def test_a_wrapped_forward_makes_the_same_images(name: str) -> None:
    seeds, pipe = [0, 1], copy.deepcopy(tiny_pipe(name))
    expected = attach(pipe, LookingPolicy(), max_steps=4)(**call(name, 2), seeds=seeds)
    wrap(find_denoiser(pipe))
    out = attach(pipe, LookingPolicy(), max_steps=4)(**call(name, 2), seeds=seeds)
    assert out.times == expected.times
    assert torch.equal(out.images, expected.images)


def test_a_wrapped_forward_is_served_too() -> None:
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    fast = attach(pipe, FixedSchedule([1.0, 0.5, 0.0]))
    alone = fast(**call("SD3", 1), seeds=[0]).images
    wrap(pipe.transformer)
    shared = BatchedPipeline(pipe, num_slots=2)
    served = shared.run()(fast, **call("SD3", 1), seeds=[0]).images
    shared.close(RuntimeError("done"))
    assert torch.allclose(served, alone, atol=1e-5)


def test_a_forward_with_other_arguments_is_refused() -> None:
    class SD3Transformer2DModel(torch.nn.Module):
        """A class with a known name only."""

        def forward(self, *x: torch.Tensor) -> torch.Tensor:
            return x[0]

    with pytest.raises(BackboneError, match=r"no 'hidden_states'\. It must have the arguments of its class") as caught:
        forward_signature(SD3Transformer2DModel())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept_first", [0, 1])
def test_a_cache_that_counts_calls_is_refused(kept_first: int) -> None:
    """The cache meets other rows inside the network, or returns too many rows at its end."""
    pipe, kept = copy.deepcopy(tiny_pipe("FLUX.1 dev")), []  # type: ignore[var-annotated]
    block = pipe.transformer.transformer_blocks[0]
    original = block.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        kept.append(kept[-1] if kept and len(kept) % 2 == kept_first else original(*args, **kwargs))
        return kept[-1]

    block.forward = forward
    own = pipe.scheduler
    several = FixedSchedule([[1.0, 0.5, 0.0], [1.0, 0.8, 0.6, 0.3, 0.0], [1.0, 0.7, 0.4, 0.0]])
    with pytest.raises(BackboneError, match="such as a cache that counts them") as caught:
        attach(pipe, several)(**call("FLUX.1 dev", 3), seeds=[0, 1, 2])
    assert "\n" not in str(caught.value)
    assert pipe.scheduler is own


def test_errors_of_the_network_are_not_changed() -> None:
    """Errors before any image has left the call, and out-of-memory errors."""
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    for error in (RuntimeError("mine"), torch.OutOfMemoryError("memory")):

        def fail(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        pipe.transformer.forward = functools.wraps(tiny_pipe("SD3").transformer.forward)(fail)
        with pytest.raises(type(error)) as caught:
            attach(pipe, FixedSchedule([1.0, 0.0]))(**call("SD3", 1), seeds=[0])
        assert caught.value is error
