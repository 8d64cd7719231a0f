"""The error for a wrapped denoiser explains how to unwrap it, instead of asking for a table entry.

https://github.com/huggingface/diffusers/issues/10928
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.registry import find_entry
from tpdm.policies.fixed import FixedSchedule


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"net": inner})


class Sharded(nn.Module):
    """Keeps the wrapped module like FSDP."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = inner


def with_lora(denoiser: Any) -> Any:
    return get_peft_model(denoiser, LoraConfig(target_modules=["to_q"]))


@pytest.mark.parametrize(("family", "place"), [("SD3", "pipe.transformer"), ("SD1.5", "pipe.unet")])
@pytest.mark.parametrize(
    ("wrap", "cure"),
    [
        (with_lora, "Set {0} = {0}.merge_and_unload(), or load the adapter with pipe.load_lora_weights."),
        (nn.DataParallel, "Set {0} = {0}.module."),
        (nn.Sequential, "Set {0} = {0}.get_submodule('0')."),
        (Wrapper, "Set {0} = {0}.get_submodule('parts.net')."),
        (Sharded, "Load the pipeline without that wrapper (tpdm train shards a denoiser with backbone.shard=true)."),
    ],
)
def test_a_wrapped_denoiser_is_refused_with_a_remedy(
    wrap: Callable[[Any], Any], cure: str, family: str, place: str
) -> None:
    pipe = copy.deepcopy(tiny_pipe(family))
    name = place.removeprefix("pipe.")
    inner = getattr(pipe, name)
    setattr(pipe, name, wrap(inner))
    with pytest.raises(BackboneError) as caught:
        attach(pipe, FixedSchedule([1.0, 0.0]))
    cls = type(inner).__name__
    assert str(caught.value).endswith(f" wraps a {cls}. The denoiser must be the {cls} itself. {cure.format(place)}")


def test_the_remedy_for_an_adapter_works() -> None:
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    plain = attach(pipe, FixedSchedule([1.0, 0.0]))
    call = {**FAMILIES["SD3"].text(1), **FAMILIES["SD3"].arguments(), "seeds": [0]}
    before = plain(**call).images
    wrapped = with_lora(pipe.transformer)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.fill_(0.1)
    pipe.transformer = wrapped.merge_and_unload()
    after = attach(pipe, FixedSchedule([1.0, 0.0]))(**call).images
    assert not torch.equal(before, after)


def test_the_error_for_an_unknown_wrapper_names_the_table() -> None:
    with pytest.raises(BackboneError, match=r"Add DENOISERS\['Linear'\]"):
        find_entry(nn.Linear(2, 2))
