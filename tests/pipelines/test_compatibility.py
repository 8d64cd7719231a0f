"""Pipelines and options that no policy can use are refused before anything runs."""

from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.tiny_families import DIFFUSION
from tests.test_artifact import config_of
from tpdm.core.errors import BackboneError, CheckpointError, ConfigError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.pipelines.registry import backbone_facts, find_denoiser
from tpdm.pipelines.time_mapping import path_of_scheduler, vp_times
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

FIXED = FixedSchedule([1.0, 0.0])


def refused(name, monkeypatch, match, error=BackboneError, **changes):
    pipe = tiny_pipe(name)
    for key, value in changes.items():
        monkeypatch.setattr(pipe, key, value)
    with pytest.raises(error, match=match) as caught:
        attach(pipe, FIXED)
    assert "\n" not in str(caught.value)


def test_two_experts_are_refused(monkeypatch):
    refused("Wan 2.1", monkeypatch, "two experts", transformer_2=tiny_pipe("Wan 2.1").transformer)


def test_one_time_per_token_is_refused(monkeypatch):
    config = {**tiny_pipe("Wan 2.1").config, "expand_timesteps": True}
    refused("Wan 2.1", monkeypatch, "one time per token", _internal_dict=config)


def test_a_pipeline_without_a_denoiser_is_refused():
    with pytest.raises(BackboneError, match="no transformer or unet"):
        attach(SimpleNamespace(scheduler=object()), FIXED)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Lumina2", {"cfg_trunc_ratio": 0.25}),
        ("Z-Image", {"cfg_truncation": 0.9}),
        ("SDXL", {"denoising_end": 0.8}),
        ("SD1.5", {"eta": 1.0}),
        ("SD1.5", {"timesteps": [900, 500]}),
    ],
)
def test_step_keyed_options_are_refused(name, options):
    family = FAMILIES[name]
    (option,) = options
    with pytest.raises(BackboneError, match=f"{option} is"):
        attach(tiny_pipe(name), FIXED)(**family.text(1), **{**family.arguments(), **options})


@pytest.mark.parametrize(("name", "option"), [("Lumina2", "cfg_trunc_ratio"), ("Z-Image", "cfg_truncation")])
def test_neutral_values_of_step_keyed_options_are_accepted(name, option):
    family = FAMILIES[name]
    call = {**family.text(1), **family.arguments(), option: 1.0}
    assert attach(tiny_pipe(name), FIXED)(**call, seeds=[0]).steps == [1]


@pytest.mark.parametrize(
    ("name", "scheduler", "match"),
    [
        ("SD1.5", DDIMScheduler(**{**DIFFUSION, "clip_sample": True}), "clip_sample=True"),
        ("SD1.5", DDIMScheduler(**DIFFUSION, thresholding=True), "thresholding=True"),
        ("SD1.5", DDIMScheduler(**DIFFUSION, prediction_type="sample"), "prediction_type='sample'"),
        ("SDXL", FlowMatchEulerDiscreteScheduler(), "needs a scheduler of epsilon or v_prediction"),
        ("Sana", DDIMScheduler(**DIFFUSION), "needs a scheduler of flow_prediction"),
    ],
)
def test_schedulers_of_another_path_are_refused(monkeypatch, name, scheduler, match):
    refused(name, monkeypatch, match, scheduler=scheduler)


def test_a_zero_terminal_snr_is_refused(monkeypatch):
    scheduler = DDIMScheduler(**DIFFUSION, rescale_betas_zero_snr=True)
    refused("SD1.5", monkeypatch, "zero-terminal-SNR", ConfigError, scheduler=scheduler)


def test_solvers_of_the_other_path_are_refused():
    with pytest.raises(ConfigError, match=r"solver is 'ab2'\. It must be one of euler, dpmpp_2m for this model"):
        attach(tiny_pipe("SD1.5"), FIXED, solver="ab2")


def test_the_path_depends_only_on_the_betas():
    ddim = DDIMScheduler(**{**DIFFUSION, "set_alpha_to_one": True})
    pndm = PNDMScheduler.from_config(ddim.config, skip_prk_steps=True)
    t_B = path_of_scheduler(ddim).log_abar_K.new_tensor([0.0, 0.25, 1.0])
    assert path_of_scheduler(pndm).sigma(t_B).tolist() == path_of_scheduler(ddim).sigma(t_B).tolist()
    assert len(vp_times(pndm, 6)) == 7  # its own list names one timestep twice


def test_a_tpm_of_another_model_of_the_same_class_and_width_is_refused():
    """SD1.5 and SDXL differ in their text encoders, and the TPM reads features of the same shape."""
    widths = infer_feature_shapes(tiny_pipe("SD1.5"), {**FAMILIES["SD1.5"].text(1), "prompt": None})
    policy = TimePredictionModule(TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2))
    facts = backbone_facts(find_denoiser(tiny_pipe("SD1.5")))
    policy.artifact = config_of(policy.shape, backbone_class="UNet2DConditionModel", backbone_facts=facts)
    attach(tiny_pipe("SD1.5"), policy)
    with pytest.raises(
        CheckpointError, match=r"[Tt]he denoiser (is )?UNet2DConditionModel (of|has) \w+ .*\. It must be"
    ):
        attach(tiny_pipe("SDXL"), policy)
    assert not backbone_facts(find_denoiser(tiny_pipe("SD3")))
