"""A change of the pipeline between ``attach`` and a call has effect in that call, or is refused.

https://github.com/huggingface/diffusers/issues/7851, https://github.com/QwenLM/Qwen-Image/issues/236
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tests.support.tiny_families import DIFFUSION
from tests.test_artifact import config_of
from tpdm.core.errors import BackboneError, CheckpointError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.registry import find_denoiser, token_width
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

TIMES = FixedSchedule([1.0, 0.6, 0.0])


def call(name: str, **more: Any) -> dict[str, Any]:
    family = FAMILIES[name]
    return {**family.text(1), **family.arguments(), **more}


def changed(name: str, change: Any) -> None:
    """A call after the change equals a call of a pipeline that is attached after the change."""
    pipe = copy.deepcopy(tiny_pipe(name))
    fast = attach(pipe, TIMES)
    before = fast(**call(name), seeds=[0]).images
    change(pipe)
    after = fast(**call(name), seeds=[0]).images
    assert torch.equal(after, attach(pipe, TIMES)(**call(name), seeds=[0]).images)
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    "options", [{"prediction_type": "v_prediction"}, {"beta_end": 0.02}, {"beta_schedule": "linear"}]
)
def test_another_diffusion_scheduler_is_used(options: dict[str, Any]) -> None:
    changed("SD1.5", lambda pipe: setattr(pipe, "scheduler", DDIMScheduler(**{**DIFFUSION, **options})))


def test_a_flow_scheduler_with_other_timesteps_is_used() -> None:
    changed("SD3", lambda pipe: setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler(500)))


def test_another_denoiser_is_used() -> None:
    def swap(pipe: Any) -> None:
        pipe.transformer = copy.deepcopy(pipe.transformer)
        with torch.no_grad():
            pipe.transformer.proj_out.weight.mul_(2)

    changed("SD3", swap)


def test_an_adapter_is_used() -> None:
    def adapt(pipe: Any) -> None:
        torch.manual_seed(0)
        pipe.transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))

    changed("SD3", adapt)


def test_a_scheduler_off_the_path_is_refused_in_the_next_call() -> None:
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    fast = attach(pipe, TIMES)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(BackboneError, match="stochastic_sampling=True"):
        fast(**call("SD3"), seeds=[0])
    assert pipe.scheduler.config.stochastic_sampling


def test_a_denoiser_of_another_class_is_refused_in_the_next_call() -> None:
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    width = token_width(find_denoiser(pipe))
    policy = TimePredictionModule(TPMConfig(width, width, channels=8, grid=2))
    policy.artifact = config_of(policy.shape)
    fast = attach(pipe, policy)
    pipe.transformer = copy.deepcopy(tiny_pipe("Sana").transformer)
    with pytest.raises(CheckpointError, match="denoiser is SanaTransformer2DModel"):
        fast(**call("SD3"), seeds=[0])


def test_a_scheduler_put_in_during_the_call_is_refused() -> None:
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    own, fast = pipe.scheduler, attach(pipe, LookingPolicy(), max_steps=3)

    def swap(pipe: Any, *_: Any) -> dict[str, Any]:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        pipe._interrupt = True
        return {}

    with pytest.raises(BackboneError, match="put into the pipeline during the call"):
        fast(**call("SD3", callback_on_step_end=swap), seeds=[0])
    assert pipe.scheduler is own
