"""A pipeline or a TPM is moved or cast between ``attach`` and a call, and devices are given in several forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.field.test_default_dtypes import call_of, widths
from tests.support.families import tiny_pipe
from tpdm.core.device import resolve_device
from tpdm.core.errors import ConfigError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import load_pipeline
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.rewards.loading import load_reward


def cast(call: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in call.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["SD3", "FLUX.1 dev", "SDXL"])
def test_the_next_call_honours_a_cast_pipeline(name, dtype):
    pipe = copy.deepcopy(tiny_pipe(name))
    policy = TimePredictionModule(TPMConfig(*widths(name), channels=8, grid=2))
    attached = [attach(pipe, FixedSchedule([1.0, 0.5, 0.0])), attach(pipe, policy, max_steps=3)]
    for before in attached:
        before(**call_of(name))
    pipe.to(dtype)
    later = [attach(pipe, FixedSchedule([1.0, 0.5, 0.0])), attach(pipe, policy, max_steps=3)]
    for before, after in zip(attached, later, strict=True):
        found, expected = before(**cast(call_of(name), dtype)), after(**cast(call_of(name), dtype))
        assert found.images.dtype == dtype
        assert torch.equal(found.images, expected.images)
        assert found.times == expected.times


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_a_tpm_stays_in_fp32_or_is_refused_before_anything_runs(change):
    policy = TimePredictionModule(TPMConfig(*widths("SD3"), channels=8, grid=2))
    attached = attach(tiny_pipe("SD3"), policy)
    getattr(policy, change)()
    with pytest.raises(ConfigError, match=r"The TPM is in torch\.\w+. It must be torch.float32.*\.to\(device\) only"):
        attached(**{**call_of("SD3"), "height": -1})  # of which the pipeline would say something else


def test_devices_in_all_their_forms():
    cpu = torch.device("cpu")
    assert resolve_device(cpu) == "cpu"
    assert load_pipeline("tinyworld", device=cpu).device == cpu
    assert load_reward("tinyworld", cpu).score(torch.zeros(1, 3, 64, 64), ["red circle"]).device == cpu


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "cuda:99", None, "nowhere"])
def test_an_unavailable_device_is_refused(device):
    for load in (load_pipeline, load_reward):
        with pytest.raises(ConfigError, match=rf"^device is '{device}', which cannot be used here .*$"):
            load("tinyworld", device=device)
