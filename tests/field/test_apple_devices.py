"""Apple's devices have no float64 and do not mix with the CPU. The same call gives the same image there.

The device is simulated (``tests.support.pretended_mps``), with real pipelines on it.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from tests.field.test_default_dtypes import call_of, widths
from tests.support.families import tiny_pipe
from tests.support.pretended_mps import pretended_mps
from tpdm.pipelines.attach import AdaptiveOutput, attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.pipelines.probe import default_times
from tpdm.policies import beta
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.rewards.preprocessing import Preprocess
from tpdm.training.objective import additive_reward, discounted_reward, rloo_advantages
from tpdm.training.rollout import make_rollout_buffer

# One of each kind of denoiser and path, without Lumina2: its rotary positions are in float64, unless PyTorch says that
# the machine has such a device.
NAMES = ("FLUX.1 dev", "FLUX.2", "Qwen-Image", "Sana", "Z-Image", "Wan 2.1", "SDXL", "PixArt-Sigma, v-prediction")
SOLVERS = {"SD3": ("euler", "dpmpp_2m", "ab2"), "SD1.5": ("euler", "dpmpp_2m")} | dict.fromkeys(NAMES, ("euler",))
ROUNDING = 1e-4  # of attention kernels, which the pretended device computes in other parts


def to(device: Any, value: Any) -> Any:
    """The user's own tensors, where the pipeline is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [to(device, one) for one in value] if isinstance(value, list) else value


@cache
def own_pipe(name: str) -> Any:
    """One that may be moved."""
    return copy.deepcopy(tiny_pipe(name))


def tpm(name: str) -> TimePredictionModule:
    shape = TPMConfig(
        *widths(name), channels=8, grid=4, velocity_change=True, gamma_range=(0.9, 0.99)
    )  # of 6 x 4 tokens
    return TimePredictionModule(shape)


def assert_alike(found: AdaptiveOutput, expected: AdaptiveOutput) -> None:
    torch.testing.assert_close(found.images.cpu(), expected.images, rtol=0, atol=ROUNDING)
    for times, other in zip(found.times, expected.times, strict=True):
        assert times == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_pipeline_is_moved_after_attach(name):
    pipe, call = own_pipe(name), call_of(name)
    attached = [attach(pipe, FixedSchedule([1.0, 0.6, 0.2, 0.0]), solver=solver) for solver in SOLVERS[name]]
    expected = [fixed(**call) for fixed in attached]
    with pretended_mps() as device:
        pipe.to(device)
        for fixed, before in zip(attached, expected, strict=True):
            after = fixed(**{key: to(device, value) for key, value in call.items()})
            assert after.images.device == device
            assert_alike(after, before)
        pipe.to("cpu")


@pytest.mark.parametrize("beside", [True, False], ids=["TPM there", "TPM on the CPU"])
@pytest.mark.parametrize("name", ["SD3", "SD1.5"])
def test_a_tpm_decides_the_same(name, beside):
    pipe, call, policy = own_pipe(name), call_of(name), tpm(name)
    asked = {"gamma": 0.95, "sample": True, "record": True}
    expected = attach(pipe, policy, max_steps=4)(**call, **asked)
    with pretended_mps() as device:
        pipe.to(device)
        found = attach(pipe, policy.to(device) if beside else policy, max_steps=4)(
            **{key: to(device, value) for key, value in call.items()}, **asked
        )
        replay = make_rollout_buffer(found.trajectories or [])
        policy.calibrate(replay.observation)
        assert (policy.fc2.weight.device == device) is beside
        logp_T, _, params = policy.evaluate(replay.observation, replay.action_T)
        assert beta.kl(params, params).cpu().abs().max() < 1e-6
        pipe.to("cpu")
    assert_alike(found, expected)
    assert logp_T.shape == replay.logp_T.shape


def test_attach_loads_a_tpm_to_the_pipelines_device():
    pipe = load_pipeline("tinyworld", device="cpu")
    call = {"prompt": "red circle top", "seeds": [0], "output_type": "latent"}
    options: dict[str, Any] = {"max_steps": 2, "defaults": call_defaults("tinyworld")}
    expected = attach(pipe, "tinyworld", **options)(**call)
    with pretended_mps() as device:
        attached = attach(pipe.to(device), "tinyworld", **options)
        assert isinstance(attached.policy, TimePredictionModule)
        assert attached.policy.fc2.weight.device == device
        found = attached(**call)
    assert found.steps == expected.steps
    # A TPM amplifies rounding: its decisions depend on features.
    torch.testing.assert_close(found.images.cpu(), expected.images, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["SD3", "SD1.5"])
def test_the_pipelines_own_times(name):
    pipe, call = own_pipe(name), {key: v for key, v in call_of(name).items() if key != "seeds"}
    expected = default_times(pipe, 3, {**call, "prompt": None})
    with pretended_mps() as device:
        pipe.to(device)
        moved = {key: to(device, value) for key, value in call.items()}
        assert default_times(pipe, 3, {**moved, "prompt": None}) == expected
        pipe.to("cpu")


def test_step_penalties_advantages_and_token_limits():
    score_B, steps_B = torch.tensor([0.1, 0.5, 0.3, 0.9]), torch.tensor([3, 4, 5, 6])
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(device: Any) -> list[torch.Tensor]:
        score, steps = score_B.to(device), steps_B.to(device)
        prices = [discounted_reward(score, steps, 0.9), additive_reward(score, steps, 0.1)]
        groups = score.view(2, 2)
        prices += [rloo_advantages(groups, "group"), rloo_advantages(groups, "gamma", score[:2])]
        return [*prices, Preprocess(8)(picture, torch.device(device))]

    expected = run("cpu")
    with pretended_mps() as device:
        for one, other in zip(run(device), expected, strict=True):
            assert one.device == device
            assert torch.equal(one.cpu(), other)


def test_the_simulated_device_refuses_what_a_real_one_refuses():
    with pretended_mps() as device:
        x = torch.ones(2, dtype=torch.float32, device=device)
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64, device=device)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)
        with pytest.raises(RuntimeError, match="divisible"):
            torch.nn.functional.adaptive_avg_pool2d(torch.ones(1, 1, 6, 4, device=device), (4, 4))
        assert (x * 2).tolist() == [2.0, 2.0]
