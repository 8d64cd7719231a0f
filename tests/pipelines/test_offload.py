"""Pipelines with model offload or sequential offload of diffusers.

diffusers needs an accelerator unless a device is named. Here the CPU takes the place of the GPU, and diffusers' own
calls set the hooks. Tests that inspect hooks set the same ones.
"""

import copy

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.config.loader import make_recipe
from tpdm.config.recipe import BackboneConfig
from tpdm.core.errors import ConfigError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import load_backbone, load_pipeline, offload
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.samplers import PipelineSampler

NAMES = ["SD3", "FLUX.1 dev", "SD1.5"]
LISTS = [[1.0, 0.6, 0.2, 0.0], [1.0, 0.5, 0.0]]


def call_of(name, images=2):
    return {**FAMILIES[name].text(images), **FAMILIES[name].arguments()}


def modules_of(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def model_offload(pipe):
    """As ``enable_model_cpu_offload``: each network comes whole when it is called, and drives the one before out."""
    previous, pipe._all_hooks = None, []
    pipe._offload_device = torch.device("cpu")  # where it sets them up again after a call
    for module in modules_of(pipe).values():
        _, previous = cpu_offload_with_hook(module, "cpu", prev_module_hook=previous)
        pipe._all_hooks.append(previous)


def sequential_offload(pipe):
    """As ``enable_sequential_cpu_offload``: weights are nowhere (meta) except while their own layer runs."""
    for module in modules_of(pipe).values():
        cpu_offload(module, "cpu", offload_buffers=True)


@pytest.mark.parametrize("set_hooks", [model_offload, sequential_offload])
@pytest.mark.parametrize("name", NAMES)
def test_an_offloaded_pipeline_can_be_driven(name, set_hooks):
    plain, pipe = tiny_pipe(name), copy.deepcopy(tiny_pipe(name))
    widths = infer_feature_shapes(plain, {**FAMILIES[name].text(1), **FAMILIES[name].arguments(), "prompt": None})
    policy = TimePredictionModule(TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2), seed=1)
    expected = [attach(plain, p, max_steps=5)(**call_of(name), seeds=[0, 1]) for p in (policy, FixedSchedule(LISTS))]
    set_hooks(pipe)
    assert pipe._execution_device == torch.device("cpu")
    for chosen, whole in zip((policy, FixedSchedule(LISTS)), expected, strict=True):
        output = attach(pipe, chosen, max_steps=5)(**call_of(name), seeds=[0, 1])
        assert output.steps == whole.steps
        assert output.nfe_rows == whole.nfe_rows
        assert torch.equal(output.images, whole.images)


@pytest.mark.parametrize("name", NAMES)
def test_sequential_offloading_does_not_read_the_device_of_weights(name):
    pipe = copy.deepcopy(tiny_pipe(name))
    sequential_offload(pipe)
    parameters = [p for module in modules_of(pipe).values() for p in module.parameters()]
    assert {p.device.type for p in parameters} == {"meta"}
    policy = LookingPolicy()
    attach(pipe, policy, max_steps=2)(**call_of(name), seeds=[0, 1])
    assert {features.last_BDHW.device.type for features in policy.seen} == {"cpu"}
    assert {p.device.type for p in parameters} == {"meta"}


@pytest.mark.parametrize("way", ["model", "sequential"])
def test_a_rollout_of_an_offloaded_pipeline_is_the_same(way, tmp_path, monkeypatch):
    make_tiny_sd3(tmp_path / "tokens").save_pretrained(tmp_path / "pipe")
    # diffusers names the first device of a kind, and accelerate takes cpu:0 and cpu for two.
    monkeypatch.setattr(
        "accelerate.cpu_offload", lambda module, device, **options: cpu_offload(module, "cpu", **options)
    )
    made = []
    for chosen in ("none", way):
        pipe = load_pipeline(tmp_path / "pipe", device="cpu")
        pipe.set_progress_bar_config(disable=True)
        offload(pipe, chosen, "cpu")  # as load_backbone does, which wants a GPU
        sampler = PipelineSampler(attach(pipe, FixedSchedule(LISTS)), 2, {"height": 16, "width": 16})
        made.append(sampler(SampleRequest(["a", "b"], [0, 1])))
    assert made[0].steps == made[1].steps
    assert torch.equal(made[0].images_B3HW, made[1].images_B3HW)


@pytest.mark.parametrize("way", ["model", "sequential"])
def test_offloading_on_the_cpu_is_refused(way):
    with pytest.raises(ConfigError, match=f"backbone.offload is {way} on the CPU"):
        load_backbone(BackboneConfig(offload=way), "cpu")


def test_an_offloaded_pipeline_cannot_be_batched():
    values = {"name": "a", "rl": {"rollout": "continuous"}, "backbone": {"offload": "model"}}
    with pytest.raises(ConfigError, match=r"rl\.rollout is continuous and backbone\.offload is model"):
        make_recipe(values)
