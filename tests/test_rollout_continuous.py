"""Continuous rollouts make the images of static batches."""

import threading

import pytest
import torch

from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.samplers import ContinuousSampler, PipelineSampler
from tpdm.training.rollout import make_rollout_buffer

PROMPTS = ["red circle top", "blue ring and small dotted green square", "object", "large striped red circle top left"]
SEEDS, DECISIONS = [0, 1, 2, 3], [10, 11, 12, 13]


@pytest.fixture(scope="module")
def attached():
    return attach(load_pipeline("tinyworld", device="cpu"), "tinyworld", defaults=call_defaults("tinyworld"))


def rollout(sampler):
    return sampler(SampleRequest(PROMPTS, SEEDS, DECISIONS, record=True))


def test_with_one_slot_the_rollout_equals_static_batches_to_the_bit(attached):
    static, continuous = rollout(PipelineSampler(attached, 1, {})), rollout(ContinuousSampler(attached, 1, {}))
    assert torch.equal(static.images_B3HW, continuous.images_B3HW)
    assert (static.steps, static.times) == (continuous.steps, continuous.times)
    first, second = make_rollout_buffer(static.trajectories), make_rollout_buffer(continuous.trajectories)
    for name in ("action_T", "logp_T", "segment_T"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    for name in ("map_BCHW", "temb_BE", "t_B", "index_B"):
        assert torch.equal(getattr(first.observation, name), getattr(second.observation, name))


def test_with_several_slots_the_rollout_equals_static_batches_up_to_rounding(attached):
    static, continuous = rollout(PipelineSampler(attached, 4, {})), rollout(ContinuousSampler(attached, 3, {}))
    assert static.steps == continuous.steps
    assert (static.images_B3HW - continuous.images_B3HW).abs().max() < 1e-2
    for first, second in zip(static.times, continuous.times, strict=True):
        torch.testing.assert_close(torch.tensor(first), torch.tensor(second), atol=2e-2, rtol=0)


def test_a_request_without_decision_seeds_takes_the_mode(attached):
    made = ContinuousSampler(attached, 2, {})(SampleRequest(PROMPTS[:2], SEEDS[:2]))
    assert made.trajectories is None
    assert made.images_B3HW.shape == (2, 3, 64, 64)
    assert made.steps == PipelineSampler(attached, 2, {})(SampleRequest(PROMPTS[:2], SEEDS[:2])).steps


def test_an_error_stops_all_images_and_leaves_no_thread(attached):
    with pytest.raises(BackboneError, match="widht"):
        ContinuousSampler(attached, 2, {"widht": 64})(SampleRequest(PROMPTS, SEEDS))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tpdm-")]
