"""Pipelines whose denoiser calls contain other rows than unconditional and conditional ones.

PAG pipelines were refused in the first step, which left the stock pipeline broken, or perturbed rows were read as
conditional ones. https://github.com/huggingface/diffusers/issues/8379
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import diffusers
import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.compatibility import REFUSED_PIPELINES
from tpdm.policies.fixed import FixedSchedule

PAG = {
    "SD3": "StableDiffusion3PAGPipeline",
    "SD1.5": "StableDiffusionPAGPipeline",
    "SDXL": "StableDiffusionXLPAGPipeline",
}


def pag_pipe(name: str) -> Any:
    cls = getattr(diffusers, PAG[name])
    taken = inspect.signature(cls.__init__).parameters
    parts = {k: v for k, v in copy.deepcopy(tiny_pipe(name)).components.items() if k in taken}
    off = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    pipe = cls(**parts, **off, pag_applied_layers="blocks.1" if name == "SD3" else "mid")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", PAG)
def test_pag_is_refused_at_attach_with_an_alternative(name: str) -> None:
    pipe, family = pag_pipe(name), FAMILIES[name]
    with pytest.raises(BackboneError, match="enable_pag=False") as caught:
        attach(pipe, LookingPolicy())
    assert "\n" not in str(caught.value)
    plain = diffusers.AutoPipelineForText2Image.from_pipe(pipe, enable_pag=False)
    plain.set_progress_bar_config(disable=True)
    assert attach(plain, FixedSchedule([1.0, 0.0]))(**family.text(1), **family.arguments(), seeds=[0]).steps == [1]
    assert type(pipe(**family.text(1), **family.arguments(), num_inference_steps=1)[0]) is torch.Tensor


@pytest.mark.parametrize("beginning", sorted(REFUSED_PIPELINES))
def test_each_refused_class_exists_in_diffusers(beginning: str) -> None:
    """A wrong name would refuse no pipeline."""
    names = [*dir(diffusers), *dir(diffusers.pipelines.pag.pag_utils)]
    assert any(name.startswith(beginning) for name in names)


def test_two_rows_without_guidance_are_refused() -> None:
    """An unguided call with two rows per image contains other rows, whatever the name of the class."""
    pipe, family = copy.copy(tiny_pipe("SD3")), FAMILIES["SD3"]
    cls = type(pipe)

    class Perturbed(cls):  # type: ignore[misc, valid-type]
        @property
        def do_classifier_free_guidance(self) -> bool:
            return True

    pipe.__class__ = Perturbed
    call = {**family.text(1), **family.arguments(guided=False)}
    with pytest.raises(BackboneError, match=r"SD3Transformer2DModel was called with 2 rows for 1 images\. .* 1\."):
        attach(pipe, LookingPolicy())(**call, seeds=[0])
