import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tpdm.core.solvers import SOLVERS
from tpdm.pipelines.axis import choose_axis
from tpdm.pipelines.backbones import TAPS
from tpdm.pipelines.image_times import ImageTimes
from tpdm.pipelines.scheduler import AdaptiveScheduler
from tpdm.schedules import FixedTimes
from tpdm.stepper import Stepper
from tpdm.types import BackboneError


def make_scheduler(lists=((1.0, 0.5, 0.0), (1.0, 0.8, 0.4, 0.0)), max_steps=5):
    policy = FixedTimes(lists)

    def make_stepper(device):
        return Stepper(policy, SOLVERS["euler"], images=2, max_steps=max_steps)

    axis = choose_axis(FlowMatchEulerDiscreteScheduler(), TAPS["SD3Transformer2DModel"], "euler")
    scheduler = AdaptiveScheduler.driving(make_stepper, lambda stepper: None, axis)
    scheduler.set_timesteps(28)
    return scheduler


def test_times_are_read_when_their_turn_comes():
    scheduler = make_scheduler()
    x, seen = torch.zeros(2, 3), []
    assert len(scheduler.timesteps) == scheduler.stepper.max_steps == 5
    for i, t in enumerate(scheduler.timesteps):
        assert torch.equal(t.max(), scheduler.timesteps[i])
        seen.append(t.tolist())
        x = scheduler.step(torch.ones(2, 3), t, x, return_dict=False)[0]
    assert seen == [[1000, 1000], [500, pytest.approx(800)], [0, pytest.approx(400)]]
    torch.testing.assert_close(x, torch.full((2, 3), -1.0))


def test_set_timesteps_starts_over():
    scheduler = make_scheduler()
    scheduler.step(torch.ones(2, 3), 1000.0, torch.zeros(2, 3))
    scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=0.7, device="cpu")
    assert scheduler.time_now().tolist() == [1000, 1000]
    sample = scheduler.step(torch.ones(2, 3), 1000.0, torch.zeros(2, 3)).prev_sample
    assert sample[:, 0].tolist() == pytest.approx([-0.5, -0.2])


def test_only_the_present_can_be_read():
    timesteps = make_scheduler().timesteps
    assert timesteps[:] is timesteps
    assert timesteps[0:] is timesteps
    assert timesteps[0].tolist() == 1000
    assert timesteps[:1].tolist() == [1000]
    for index in (1, -1, slice(2, None), slice(0, 2)):
        with pytest.raises(BackboneError, match="decided one by one"):
            timesteps[index]


def test_of_a_single_step_the_first_entry_is_not_the_whole():
    timesteps = make_scheduler([[1.0, 0.0]] * 2, max_steps=1).timesteps
    assert timesteps[:] is timesteps
    assert timesteps[0:] is timesteps
    assert timesteps[:1].tolist() == [1000]


def test_image_times_tile_when_expanded():
    times = torch.tensor([3.0, 4.0]).as_subclass(ImageTimes)
    assert times.expand(4).tolist() == [3, 4, 3, 4]
    assert type(times.expand(4)) is torch.Tensor
    assert times.expand(3, 2).shape == (3, 2)
    assert (times / 2).expand(2).tolist() == [1.5, 2]


def test_a_loop_that_never_steps_ends_at_the_cap():
    assert len(list(make_scheduler().timesteps)) == 5
