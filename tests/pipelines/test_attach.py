import copy
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from tests.support.policies import LookingPolicy
from tests.test_artifact import config_of
from tpdm.core.errors import BackboneError, CheckpointError, ConfigError, TpdmError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

CALL = {"max_sequence_length": 4, "output_type": "latent"}
TIMES = [[1.0, 0.5, 0.0], [1.0, 0.8, 0.4, 0.0]]


@pytest.fixture
def untouched(sd3):
    """Checks after the test that the pipe is as before."""
    before = sd3.scheduler, dict(sd3.config)
    yield
    assert (sd3.scheduler, dict(sd3.config)) == before
    for module in sd3.transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.usefixtures("untouched")
def test_the_pipe_is_restored(sd3):
    attach(sd3, LookingPolicy())("a", seeds=[0], **CALL)


@pytest.mark.usefixtures("untouched")
def test_the_pipe_is_restored_after_an_error(sd3):
    def fail(pipe, i, t, tensors):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        attach(sd3, LookingPolicy())("a", callback_on_step_end=fail, **CALL)
    with pytest.raises(TpdmError, match=r"NaN .* prediction for image 1 at t = 1 "):
        attach(sd3, FixedSchedule(TIMES))(["a", "b"], latents=latents_with_nan(), **CALL)


def latents_with_nan():
    latents = torch.zeros(2, 4, 8, 8)
    latents[1, 0, 0, 0] = float("nan")
    return latents


def test_the_loop_ends_early_and_callbacks_see_the_times_of_every_image(sd3):
    seen = []

    def look(pipe, i, t, tensors):
        seen.append((i, (t / 1000).tolist()))
        return tensors

    output = attach(sd3, FixedSchedule(TIMES), max_steps=28)(["a", "b"], callback_on_step_end=look, **CALL)
    assert output.steps == [2, 3]
    assert [i for i, _ in seen] == [0, 1, 2]
    assert [t for _, t in seen] == [pytest.approx(t) for t in ([1.0, 1.0], [0.5, 0.8], [0.0, 0.4])]


@pytest.mark.usefixtures("untouched")
def test_an_interrupted_call_ends(sd3):
    def interrupt(pipe, i, t, tensors):
        pipe._interrupt = True
        return tensors

    output = attach(sd3, FixedSchedule(TIMES))(["a", "b"], callback_on_step_end=interrupt, **CALL)
    assert output.steps == [1, 1]


def test_max_steps_of_a_call_overrides_that_of_attach(sd3):
    driven = attach(sd3, LookingPolicy(), max_steps=9, stop_below=0.0)
    assert driven("a", **CALL).steps == [9]
    output = driven("a", max_steps=3, record=True, **CALL)
    assert output.steps == [3]
    assert output.times[0][-1] == 0.0
    assert [step.counts for step in output.trajectories[0].steps] == [True, True, False]


def test_trajectories_are_recorded_on_demand(sd3):
    driven = attach(sd3, LookingPolicy())
    assert driven(["a", "b"], **CALL).trajectories is None
    output = driven(["a", "b"], record=True, sample=True, seeds=[1, 2], **CALL)
    assert [t.times for t in output.trajectories] == output.times
    assert [len(t.steps) for t in output.trajectories] == output.steps
    assert output.trajectories[0].steps[0].observation.map_BCHW.shape == (1, 32, 1, 1)


def test_images_are_pil_images_by_default(sd3):
    (image,) = attach(sd3, FixedSchedule([1.0, 0.0]))("a", max_sequence_length=4).images
    assert image.size == (16, 16)


def test_hooks_are_set_only_for_policies_that_read_features(sd3):
    hooked = []

    def look(pipe, i, t, tensors):
        hooked.append(bool(pipe.transformer.proj_out._forward_pre_hooks))
        return tensors

    attach(sd3, FixedSchedule([1.0, 0.0]))("a", callback_on_step_end=look, **CALL)
    attach(sd3, LookingPolicy(), max_steps=1)("a", callback_on_step_end=look, **CALL)
    assert hooked == [False, True]


def test_defaults_are_used_for_missing_arguments(sd3):
    driven = attach(sd3, FixedSchedule([1.0, 0.0]), defaults={**CALL, "guidance_scale": 1.0})
    assert driven("a").nfe_rows == 1
    assert driven("a", guidance_scale=3.0).nfe_rows == 2


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"num_inference_steps": 20}, BackboneError, "Limit the number of steps with max_steps"),
        ({"sigmas": [1.0, 0.5]}, BackboneError, "sigmas is"),
        ({"timesteps": [900]}, BackboneError, "Did you mean|See its __call__|cannot use this argument"),
        ({"mu": 1.0}, BackboneError, "shifts a fixed schedule"),
        ({"skip_guidance_layers": [1]}, BackboneError, "skip-layer guidance"),
        ({"return_dict": False}, BackboneError, "AdaptiveOutput"),
        ({"guidence_scale": 3.0}, BackboneError, "Did you mean 'guidance_scale'"),
        ({"seeds": [1, 2, 3]}, ConfigError, "length 3 for 2 images"),
        ({"seeds": [1, 2], "latents": torch.zeros(1)}, ConfigError, "seeds and latents are both given"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, ConfigError, "seeds and generator are both given"),
        ({"sample": True}, ConfigError, "sample is True without seeds"),
        ({"decision_seeds": [1]}, ConfigError, "without sample=True"),
        ({"sample": True, "decision_seeds": [1, 2, 3]}, ConfigError, "seeds has 3 numbers for 2 images"),
        ({"prompt": None}, ConfigError, "needs prompt or prompt_embeds"),
        ({"prompt": []}, ConfigError, "empty list"),
        ({"max_steps": 1}, ConfigError, "Pass max_steps=3"),
        ({"prompt": ["a", "b", "c"]}, ConfigError, "2 lists of times for 3 images"),
    ],
)
def test_unusable_options_are_refused(sd3, call, error, message):
    with pytest.raises(error, match=message):
        attach(sd3, FixedSchedule(TIMES))(**{"prompt": ["a", "b"], **call})


def test_unusable_pipelines_are_refused(sd3):
    with pytest.raises(BackboneError, match="object has no scheduler"):
        attach(object(), FixedSchedule([1.0, 0.0]))
    with pytest.raises(ConfigError, match="solver is 'heun'"):
        attach(sd3, FixedSchedule([1.0, 0.0]), solver="heun")
    original = sd3.scheduler
    try:
        sd3.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
        with pytest.raises(BackboneError, match="stochastic_sampling"):
            attach(sd3, FixedSchedule([1.0, 0.0]))
    finally:
        sd3.scheduler = original


class Packed(nn.Linear):
    """Its weights as 4-bit quantisation keeps them: two to a byte, in one column."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.kept, self.bias = linear.weight, linear.bias
        self.weight = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.kept, self.bias)


class Adapted(nn.Module):
    """A layer as PEFT wraps it."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return self.base_layer(x)


@pytest.mark.parametrize("wrap", [Packed, Adapted, lambda layer: Adapted(Packed(layer))])
def test_a_tpm_fits_a_denoiser_with_quantized_or_adapted_weights(sd3, wrap):
    pipe = copy.copy(sd3)
    pipe.transformer = copy.deepcopy(sd3.transformer)
    widths = infer_feature_shapes(pipe, CALL)
    policy = TimePredictionModule(TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2), seed=1)
    policy.artifact = config_of(policy.shape, call_defaults={})
    expected = attach(pipe, policy, max_steps=3)("a", seeds=[0], **CALL)
    pipe.transformer.proj_out = wrap(pipe.transformer.proj_out)
    output = attach(pipe, policy, max_steps=3)("a", seeds=[0], **CALL)
    assert output.times == expected.times
    policy.artifact = config_of(TPMConfig(widths.feature_channels + 1, widths.temb_channels))
    with pytest.raises(CheckpointError, match=f"of width {widths.feature_channels} "):
        attach(pipe, policy)


def test_the_pipeline_is_resolved_once(sd3, monkeypatch):
    attached = attach(copy.copy(sd3), FixedSchedule([1.0, 0.5, 0.0]), max_steps=3)
    attached("a", seeds=[0], **CALL)
    assert attached._resolve() is attached.spec
    assert replace(attached, solver="ab2")._resolve() is not attached.spec
    assert replace(attached, policy=LookingPolicy())._resolve() is not attached.spec
    attached.pipe.register_to_config(expand_timesteps=True)
    with pytest.raises(BackboneError, match="expand_timesteps"):
        attached("a", seeds=[0], **CALL)


def test_defaults_have_one_precedence(sd3):
    policy = TimePredictionModule(TPMConfig(32, 32, channels=8, grid=2))
    policy.artifact = config_of(policy.shape, call_defaults={"guidance_scale": 2.0, "height": 32})
    weakest = {"guidance_scale": 1.0, "height": 16, "width": 16}
    attached = attach(sd3, policy, defaults={"guidance_scale": 3.0}, pipeline_defaults=weakest)
    assert dict(attached.defaults) == {"guidance_scale": 3.0, "height": 32, "width": 16}
