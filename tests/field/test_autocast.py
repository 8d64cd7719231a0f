"""Calls inside ``torch.autocast``: the denoiser computes in half precision, and tpdm's arithmetic stays fp32.

A stock pipeline keeps its latents in fp32 if its scheduler does. On the variance-preserving path, tpdm returned them in
the dtype of the prediction and rounded every step. Gradients of the TPM and scores of rewards were in half precision
too.
"""

from __future__ import annotations

import copy
import logging
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from packaging.version import Version

from tests.field.test_default_dtypes import assert_same, learned, shipped_reward
from tests.support.families import FAMILIES, VP_FAMILIES, tiny_pipe
from tpdm.core.solvers import Euler
from tpdm.core.stepper import Stepper
from tpdm.pipelines.attach import attach
from tpdm.pipelines.time_mapping import flow_times, vp_times
from tpdm.policies.fixed import FixedSchedule
from tpdm.training.distributed.context import init_distributed

# Of PyTorch, in models whose norms stay fp32; the stock pipeline has it as well.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
STEPS = 4
HALVES = {"device_type": "cpu", "dtype": torch.bfloat16}


@cache
def stock_pipe(name: str) -> Any:
    """With a first-order scheduler, whose times can be given to ours."""
    pipe = copy.copy(tiny_pipe(name))
    if name in VP_FAMILIES:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def draw(pipe: Any, name: str, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of the stock pipeline, and of ours at the same times."""
    call = {**FAMILIES[name].text(2), **FAMILIES[name].arguments(), **more}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    stock = pipe(**call, num_inference_steps=STEPS, generator=generators)[0]
    vp = name in VP_FAMILIES
    times = vp_times(pipe.scheduler, STEPS) if vp else flow_times(pipe.scheduler)
    return stock, attach(pipe, FixedSchedule(times))(**call, seeds=[0, 1]).images


def distance(images: torch.Tensor, exact: torch.Tensor) -> float:
    return float((images.float() - exact).abs().mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_is_as_close_to_fp32_as_the_stock_pipeline(name):
    if name == "Z-Image" and Version(diffusers.__version__) < Version("0.38"):
        pytest.skip("the stock pipeline of diffusers 0.37 fails inside autocast")
    pipe = stock_pipe(name)
    exact, _ = draw(pipe, name)
    with torch.autocast(**HALVES):
        stock, ours = draw(pipe, name)
    assert ours.dtype == stock.dtype
    assert distance(ours, exact) <= 1.05 * distance(stock, exact)
    assert distance(ours, exact) > 0  # it was in force


@pytest.mark.parametrize("name", ["SD3", "SD1.5"])
def test_decoded_images_are_as_close_to_fp32_as_those_of_the_stock_pipeline(name):
    pipe = stock_pipe(name)
    exact, _ = draw(pipe, name, output_type="pt")
    with torch.autocast(**HALVES):
        stock, ours = draw(pipe, name, output_type="pt")
    assert distance(ours, exact) <= 1.1 * distance(stock, exact)


@pytest.mark.parametrize("name", ["SD3", "FLUX.1 dev", "SD1.5", "PixArt-Sigma, v-prediction"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_pipeline_is_as_close_as_the_stock_one(name, dtype):
    exact, _ = draw(stock_pipe(name), name)
    pipe = copy.deepcopy(stock_pipe(name)).to(dtype)
    embeds = {k: v.to(dtype) for k, v in FAMILIES[name].text(2).items() if v.is_floating_point()}
    stock, ours = draw(pipe, name, **embeds)
    assert ours.dtype == stock.dtype == dtype
    assert distance(ours, exact) <= 1.05 * distance(stock, exact)


def test_an_update_is_bit_equal_without_autocast():
    expected = learned()
    with torch.autocast(**HALVES):
        assert_same(learned(), expected)


def test_scores_are_bit_equal_without_autocast():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = shipped_reward(images)
    with torch.autocast(**HALVES):
        assert_same(shipped_reward(images), expected)


class AskingSolver(Euler):
    """Notes whether a product would be computed in halves."""

    halves: bool | None = None

    def step(self, *args: Any, **options: Any) -> Any:
        type(self).halves = torch.is_autocast_enabled("cpu")
        return super().step(*args, **options)


def test_steps_are_made_outside_of_it():
    stepper = Stepper(FixedSchedule([1.0, 0.0]), AskingSolver(), images=1)
    x = torch.zeros(1, 2)
    with torch.autocast(**HALVES):
        stepper.advance(x, x, None)
        assert torch.is_autocast_enabled("cpu")
    assert AskingSolver.halves is False


@pytest.mark.parametrize(("asked", "said"), [("bf16", True), ("fp8", True), ("no", False), (None, False)])
def test_mixed_precision_of_accelerate_logs_that_it_has_no_effect(asked, said, monkeypatch, caplog):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if asked is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with caplog.at_level(logging.WARNING), init_distributed("cpu"):
        pass
    assert (f"mixed precision {asked}" in caplog.text) is said
