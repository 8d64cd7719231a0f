import copy

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from tests.support.tiny_families import DIFFUSION
from tpdm.core.errors import BackboneError
from tpdm.core.solvers import SOLVERS
from tpdm.core.stepper import Stepper
from tpdm.pipelines.registry import DENOISERS
from tpdm.pipelines.scheduler import AdaptiveScheduler
from tpdm.pipelines.time_mapping import PerSampleTimesteps, make_time_mapping
from tpdm.policies.fixed import FixedSchedule


def make_scheduler(lists=((1.0, 0.5, 0.0), (1.0, 0.8, 0.4, 0.0)), max_steps=5):
    policy = FixedSchedule(lists)

    def make_stepper(device):
        return Stepper(policy, SOLVERS["euler"], images=2, max_steps=max_steps)

    axis = make_time_mapping(FlowMatchEulerDiscreteScheduler(), DENOISERS["SD3Transformer2DModel"], "euler")
    scheduler = AdaptiveScheduler.driving(make_stepper, lambda stepper: None, axis)
    scheduler.set_timesteps(28)
    return scheduler


def test_times_are_decided_during_the_loop():
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


def test_only_the_current_entry_can_be_read():
    timesteps = make_scheduler().timesteps
    assert timesteps[:] is timesteps
    assert timesteps[0:] is timesteps
    assert timesteps[0].tolist() == 1000
    assert timesteps[:1].tolist() == [1000]
    for index in (1, -1, slice(0, 2)):
        with pytest.raises(BackboneError, match="decided one by one"):
            timesteps[index]
    with pytest.raises(BackboneError, match="starts at step 2 of 5, but the fixed times start at 1"):
        timesteps[2:]


def test_the_first_entry_of_a_single_step_differs_from_the_whole_slice():
    timesteps = make_scheduler([[1.0, 0.0]] * 2, max_steps=1).timesteps
    assert timesteps[:] is timesteps
    assert timesteps[0:] is timesteps
    assert timesteps[:1].tolist() == [1000]


def test_per_sample_timesteps_repeat_when_expanded():
    times = torch.tensor([3.0, 4.0]).as_subclass(PerSampleTimesteps)
    assert times.expand(4).tolist() == [3, 4, 3, 4]
    assert type(times.expand(4)) is torch.Tensor
    assert times.expand(3, 2).shape == (3, 2)
    assert (times / 2).expand(2).tolist() == [1.5, 2]


def test_a_loop_that_never_steps_ends_at_the_cap():
    assert len(list(make_scheduler().timesteps)) == 5


def test_timesteps_cannot_be_read_as_a_tensor():
    timesteps = make_scheduler().timesteps
    with pytest.raises(BackboneError, match=r"timesteps\.flip does not exist.*Loop over"):
        timesteps.flip(0)
    with pytest.raises(BackboneError, match="decided one by one"):
        torch.tensor(timesteps)
    assert not hasattr(timesteps, "mine")
    assert copy.copy(timesteps)[0] == timesteps[0]


def test_a_second_loop_is_refused():
    """A second loop would have no times, and would start from the first latents."""
    scheduler = make_scheduler()
    scheduler.step(torch.ones(2, 3), 1000.0, torch.zeros(2, 3))
    with pytest.raises(BackboneError, match="timesteps are iterated a second time"):
        list(scheduler.timesteps)


def test_sigmas_are_those_of_the_current_times():
    """Wan's pipeline reads the sigma of its step, callbacks that of the next."""
    scheduler = make_scheduler()
    assert scheduler.sigmas[0].item() == 1.0
    scheduler.step(torch.ones(2, 3), 1000.0, torch.zeros(2, 3))
    assert scheduler.sigmas[1].item() == pytest.approx(0.8)
    with pytest.raises(BackboneError, match="decided one by one"):
        scheduler.sigmas[2]


def test_a_pipeline_that_uses_another_scheduler_is_refused():
    axis = make_time_mapping(FlowMatchEulerDiscreteScheduler(), DENOISERS["SD3Transformer2DModel"], "euler")
    scheduler = AdaptiveScheduler.driving(lambda device: None, lambda stepper: None, axis)
    with pytest.raises(BackboneError, match=r"calls its denoiser before scheduler\.set_timesteps"):
        assert scheduler.stepper.done


def make_vp_scheduler(lists):
    axis = make_time_mapping(DDIMScheduler(**DIFFUSION), DENOISERS["UNet2DConditionModel"], "euler")
    policy = FixedSchedule(lists)
    scheduler = AdaptiveScheduler.driving(
        lambda device: Stepper(policy, axis.solver, images=len(lists)), lambda stepper: None, axis
    )
    scheduler.set_timesteps(28)
    return scheduler, axis


def test_scale_noise_uses_the_time_of_each_image():
    """The current timestep stands for each image's own time. A callback may pass another timestep."""
    scheduler, axis = make_vp_scheduler([[1.0, 0.5, 0.0], [1.0, 0.8, 0.0]])
    picture, noise = torch.rand(2, 4, 3, 2), torch.randn(2, 4, 3, 2)
    scheduler.step(noise, 999.0, noise)
    now = axis.noised(picture, noise, torch.tensor([0.5, 0.8]))
    for handed in (scheduler.timesteps[1], scheduler.timesteps[1].long(), scheduler.time_now()):
        assert torch.equal(scheduler.add_noise(picture, noise, handed.reshape(-1)), now)
    ddim = DDIMScheduler(**DIFFUSION)
    for asked in ([999], [250, 100], [0]):
        timesteps = torch.tensor(asked)
        expected = ddim.add_noise(picture, noise, timesteps)
        torch.testing.assert_close(scheduler.add_noise(picture, noise, timesteps), expected, atol=1e-6, rtol=0)


def test_a_finished_image_gets_no_noise_and_keeps_the_latents_of_its_last_step():
    scheduler, _ = make_vp_scheduler([[1.0, 0.0], [1.0, 0.8, 0.0]])
    picture, noise = torch.rand(2, 4, 3, 2), torch.randn(2, 4, 3, 2)
    landed = scheduler.step(noise, 999.0, noise, return_dict=False)[0]
    noised = scheduler.add_noise(picture, noise, scheduler.timesteps[1])
    assert torch.equal(noised[0], picture[0])
    assert not torch.equal(noised[1], picture[1])
    changed = scheduler.step(noise, 999.0, landed + 1.0, return_dict=False)[0]  # as a pipeline may between steps
    assert torch.equal(changed[0], landed[0])
    assert not torch.equal(changed[1], landed[1])
