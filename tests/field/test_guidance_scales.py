"""Guidance scales of each pipeline: in training, in the trained TPM, and in unusual models.

A user trained on Qwen-Image at guidance 1 and at 9. Both runs had the same metrics, and their TPMs named 1.0 and 9.0.
Prompts with negative prompts were used with a pipeline that does not guide, without a message.

https://github.com/verl-project/verl-omni/issues/55
https://github.com/vladmandic/sdnext/issues/4097
"""

import json

import diffusers
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from typer.testing import CliRunner

import tpdm.pipelines.guidance
from tests.support.families import FAMILIES, tiny_pipe
from tests.support.tiny_runs import SECTIONS
from tests.support.tiny_texts import make_speaking_pipe
from tests.test_artifact import config_of
from tpdm.cli import app
from tpdm.config.loader import make_recipe
from tpdm.core.errors import BackboneError, ConfigError
from tpdm.data.prompts import Prompt
from tpdm.pipelines.attach import attach, feature_guidance
from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.loading.load import guidance_of, load_pipeline, pinned_arguments
from tpdm.pipelines.registry import DENOISERS
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.sampling.base import SampleRequest
from tpdm.serving.engine.engine import make_engine
from tpdm.serving.engine.interface import ImageRequest
from tpdm.serving.http.protocol import parse
from tpdm.serving.http.settings import ModelCard, Settings
from tpdm.training.build import build_components, check_negatives
from tpdm.training.planning.plan import make_plan
from tpdm.training.run_identity import run_identity

FIXED = FixedSchedule([1.0, 0.5, 0.0])
SIZE = {"height": 32, "width": 32}
CPU = {"device": "cpu", **SIZE}


def saved(pipe, folder):
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Qwen-Image with all its parts, and its folder."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    tiny = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
    vae = AutoencoderKLQwenImage(**tiny, attn_scales=[], latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()
    pipe = make_speaking_pipe("Qwen-Image", folder / "tokens")
    pipe = type(pipe)(**{**pipe.components, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    return pipe, saved(pipe, folder / "pipe")


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")
    return saved(make_speaking_pipe("FLUX.1 dev", folder / "tokens"), folder / "pipe")


def recipe_on(pipe, output, negatives=False, **backbone):
    rows = [f"{a}{b},{'dull' if negatives else ''}" for a in "abcd" for b in "abcd"]
    output.mkdir(exist_ok=True)
    (output / "prompts.csv").write_text("\n".join(["prompt,negative", *rows]))
    sections = {name: dict(values) for name, values in SECTIONS.items()}
    sections["backbone"] = {**CPU, "name_or_path": str(pipe), **backbone}
    sections["rl"].update(updates=1, prompts_per_update=2)
    sections["validation"].update(samples_per_prompt=1, prompts=2)
    sections["sampling"] = {"max_steps": 3}
    own = {"reward": {"name": "python:tests.support.tiny_runs:brightness"}}
    source = {"prompts": {"source": str(output / "prompts.csv")}}
    return make_recipe({"name": "tiny", "output": str(output / "run"), **sections, **own, **source})


def first_two(parts, decision_seeds=None):
    prompts, record = parts.train_prompts[:2], decision_seeds is not None
    return SampleRequest.of(prompts, [0, 1], decision_seeds, record, with_negatives=parts.with_negatives)


def test_another_scale_changes_the_training_and_the_tpm_contains_it(qwen, tmp_path):
    pipe, folder = qwen
    pictures, artifacts = [], []
    for scale in (1.0, 9.0):
        parts = build_components(recipe_on(folder, tmp_path / f"at{scale:g}", guidance_scale=scale), tmp_path)
        pictures.append(parts.sampler(first_two(parts, [2, 3])).images_B3HW)
        validation = {"steps_mean": 2.0, "objective_mean": 0.0, "score_mean": 0.0}
        parts.save("best", parts.policy, {"update": 0, "validation": validation})
        artifacts.append(json.loads((tmp_path / "best" / "config.json").read_text()))
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
    assert [one["guidance_scale"] for one in artifacts] == [1.0, 9.0]
    assert [one["call_defaults"] for one in artifacts] == [
        {**SIZE, "true_cfg_scale": 1.0},
        {**SIZE, "true_cfg_scale": 9.0, "negative_prompt": ""},
    ]
    # Called without a word, the TPM guides as in its training: two rows of the denoiser for each step.
    driven = attach(pipe, tmp_path / "best")
    guided = driven(["cat", "dog"], seeds=[0, 1])
    assert guided.nfe_rows == 2 * sum(guided.steps)
    plain = driven(["cat", "dog"], seeds=[0, 1], true_cfg_scale=1.0)
    assert plain.nfe_rows == sum(plain.steps)


def test_a_saved_scale_without_effect_is_left_out_with_a_warning(qwen, caplog):
    pipe, _ = qwen
    policy = TimePredictionModule(TPMConfig(32, 32, channels=8, grid=2))
    asked = {"guidance_scale": 9.0, **SIZE}
    policy.artifact = config_of(policy.shape, backbone_class="QwenImageTransformer2DModel", call_defaults=asked)
    tpdm.pipelines.guidance._warn_once.cache_clear()
    driven = attach(pipe, policy)
    assert "guidance_scale of the TPM's training is 9. QwenImagePipeline does not use it" in caplog.text
    assert dict(driven.defaults) == SIZE
    output = driven("cat", seeds=[0])
    assert output.nfe_rows == sum(output.steps)
    # The user's own word is no leftover.
    with pytest.raises(BackboneError, match=r"guidance_scale is 9\. .*Pass true_cfg_scale with a neg"):
        attach(pipe, policy, defaults={"guidance_scale": 9.0})("cat")


@pytest.mark.parametrize(
    ("name", "negatives", "pinned"),
    [
        ("SD3", False, {"guidance_scale": 7.0}),
        ("Z-Image", True, {"guidance_scale": 5.0}),
        ("FLUX.1 dev", False, {"guidance_scale": 3.5, "true_cfg_scale": 1.0}),
        ("FLUX.1 schnell", False, {"true_cfg_scale": 1.0}),
        ("FLUX.2", False, {"guidance_scale": 4.0}),
        ("Qwen-Image", False, {"true_cfg_scale": 1.0}),
        ("Qwen-Image", True, {"true_cfg_scale": 4.0, "negative_prompt": ""}),
    ],
)
def test_the_saved_arguments_are_those_that_acted(name, negatives, pinned):
    assert pinned_arguments(tiny_pipe(name), {}, negatives) == pinned


MODELS = {
    # pipeline, denoiser, what the denoiser's configuration says, what the pipeline's does:
    #     what users mean by guidance scale, whether it acts, whether the pipeline guides
    "FLUX.1 Kontext": ("FluxKontextPipeline", "Flux", {"guidance_embeds": True}, {}, "guidance_scale", True, True),
    "FLUX.1 Fill": ("FluxFillPipeline", "Flux", {"guidance_embeds": True}, {}, "guidance_scale", True, False),
    "FLUX.2 klein": ("Flux2KleinPipeline", "Flux2", {}, {"is_distilled": False}, "guidance_scale", True, True),
    "klein, distilled": ("Flux2KleinPipeline", "Flux2", {}, {"is_distilled": True}, "guidance_scale", False, False),
    "Qwen, distilled": ("QwenImagePipeline", "QwenImage", {"guidance_embeds": True}, {}, "guidance_scale", True, True),
    "Qwen, edit": ("QwenImageEditPipeline", "QwenImage", {}, {}, "true_cfg_scale", True, True),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_configuration_decides_whether_a_model_guides(model):
    pipeline, denoiser, config, index, asked, acts, guides = MODELS[model]
    entry = DENOISERS[f"{denoiser}Transformer2DModel"]
    guidance = Guidance.made(getattr(diffusers, pipeline), denoiser, entry, config, index)
    assert (guidance.user_scale, guidance.acts(asked), guidance.guides) == (asked, acts, guides)


def test_a_consistency_model_embeds_its_scale_and_does_not_guide():
    entry = DENOISERS["UNet2DConditionModel"]
    lcm = Guidance.made(diffusers.StableDiffusionPipeline, "UNet", entry, {"time_cond_proj_dim": 256}, {})
    assert lcm.check({"guidance_scale": 8.0}, {"guidance_scale": 8.0}) is None
    with pytest.raises(BackboneError, match=r"negative_prompt has no effect\. .*does not guide"):
        lcm.check({"guidance_scale": 8.0, "negative_prompt": "dull"}, {"negative_prompt": "dull"})


def call(name, **more):
    family = FAMILIES[name]
    return attach(tiny_pipe(name), FIXED)(**family.text(1, False), **family.arguments(False), **more, seeds=[0]).images


def test_a_neutral_scale_is_accepted_without_guidance():
    """FLUX.1-schnell's own example sets guidance_scale=0."""
    assert torch.equal(call("FLUX.1 schnell", guidance_scale=0.0), call("FLUX.1 schnell"))
    with pytest.raises(BackboneError, match=r"guidance_scale is 3\.5\. FluxPipeline does not use it"):
        call("FLUX.1 schnell", guidance_scale=3.5)


def test_a_scale_of_none_uses_the_pipelines_default():
    family = FAMILIES["SD1.5"]
    driven, texts = attach(tiny_pipe("SD1.5"), FIXED), family.text(1)
    own = driven(**texts, **family.call, output_type="latent", seeds=[0]).images
    assert torch.equal(driven(**texts, **family.call, output_type="latent", seeds=[0], guidance_scale=None).images, own)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SD1.5", {"guidance_rescale": 0.7}),
        ("SDXL", {"negative_crops_coords_top_left": (8, 8)}),
        ("Z-Image", {"cfg_normalization": True}),
    ],
)
def test_options_that_need_guidance_are_refused_without_it(name, said):
    off = attach(tiny_pipe(name), FIXED, defaults=FAMILIES[name].plain)
    family = FAMILIES[name]
    with pytest.raises(BackboneError, match=f"{next(iter(said))} has no effect at guidance_scale="):
        off(**family.text(1, False), **family.call, **said, output_type="latent", seeds=[0])


@pytest.mark.parametrize("name", ["FLUX.1 dev", "Z-Image", "SD1.5"])
def test_one_negative_prompt_is_used_for_every_prompt(name, tmp_path):
    """Some stock pipelines use it for the first prompt only, and fail."""
    pipe, guided = make_speaking_pipe(name, tmp_path), FAMILIES["FLUX.1 dev, true CFG"].guided
    driven = attach(pipe, FIXED, defaults=guided if name == "FLUX.1 dev" else {})
    said = {**FAMILIES[name].call, "output_type": "latent", "seeds": [0, 1]}
    one = driven(["cat", "dog"], negative_prompt="dull", **said).images
    assert torch.equal(one, driven(["cat", "dog"], negative_prompt=["dull", "dull"], **said).images)


def test_guided_features_are_combined_with_the_scale_that_acts():
    policy = TimePredictionModule(TPMConfig(32, 32, channels=8, grid=2, features="guided"))
    assert feature_guidance(Guidance.of(tiny_pipe("Qwen-Image")), policy, {"true_cfg_scale": 9.0}) == 9.0
    assert feature_guidance(Guidance.of(tiny_pipe("FLUX.1 dev")), policy, {"guidance_scale": 3.5}) == 1.0
    assert feature_guidance(Guidance.of(tiny_pipe("SD3")), policy, {}) == 7.0
    assert feature_guidance(Guidance.of(tiny_pipe("FLUX.2")), policy, {}) is None


def test_precomputed_embeddings_include_the_empty_negative_prompt(flux, tmp_path):
    made = []
    for before in (False, True):
        recipe = recipe_on(flux, tmp_path / str(before), true_cfg_scale=3.0, precompute_prompt_embeddings=before)
        parts = build_components(recipe, tmp_path / str(before))
        made.append(parts.sampler(first_two(parts)))
    assert made[0].steps == made[1].steps
    torch.testing.assert_close(made[0].images_B3HW, made[1].images_B3HW, rtol=0, atol=1e-5)


def test_a_recipe_whose_negative_prompts_have_no_effect_is_refused_before_anything_is_loaded(flux, tmp_path, caplog):
    recipe = recipe_on(flux, tmp_path / "idle", negatives=True)
    for refused in (lambda: build_components(recipe, tmp_path), lambda: make_plan(recipe)):
        with pytest.raises(ConfigError, match=r"prompts\.csv has negative prompts: negative_prompt has no effect at"):
            refused()
    check_negatives(recipe_on(flux, tmp_path / "used", negatives=True, true_cfg_scale=3.0), [Prompt("a", "dull")])
    assert not caplog.records
    check_negatives(recipe_on(flux, tmp_path / "off", negatives=True, true_cfg_scale=1.0), [Prompt("a", "dull")])
    assert "prompts.csv has negative prompts: negative_prompt has no effect at true_cfg_scale=1" in caplog.text


def test_an_older_run_resumes():
    recipe = make_recipe({"name": "a", "output": "a"})
    assert "backbone.true_cfg_scale" not in run_identity(recipe, [], [])
    named = make_recipe({"name": "a", "output": "a", "backbone": {"true_cfg_scale": 2.0}})
    assert run_identity(named, [], [])["backbone.true_cfg_scale"] == 2.0


def test_the_scale_reaches_the_engine_and_the_images(monkeypatch, tmp_path):
    card = ModelCard("m", learned=False, gamma_conditioned=False, default_steps=28)
    asked = parse(b'{"prompt": "a", "true_cfg_scale": 2.5, "guidance_scale": 3}', Settings(), card)
    assert (asked.images[0].true_cfg_scale, asked.images[0].guidance_scale) == (2.5, 3.0)
    calls = []
    monkeypatch.setattr("tpdm.sampling.generate.sample_to_folder", lambda **options: calls.append(options))
    assert CliRunner().invoke(app, ["sample", "--prompt", "a", "--true-cfg-scale", "2.5"]).exit_code == 0
    assert calls[0]["true_cfg_scale"] == 2.5


@pytest.mark.parametrize(
    ("options", "asked", "scale"),
    [
        ({}, {}, 7.0),
        ({"guidance_scale": 3.0}, {}, 3.0),
        ({"guidance_scale": 3.0}, {"guidance_scale": 5.0}, 5.0),
    ],
)
def test_a_server_has_a_scale_for_requests_that_give_none(monkeypatch, options, asked, scale):
    pipe = tiny_pipe("SD3")
    monkeypatch.setattr("tpdm.pipelines.loading.load.load_pipeline", lambda *names: pipe)
    policy = TimePredictionModule(TPMConfig(32, 32, channels=8, grid=2))
    policy.artifact = config_of(policy.shape, call_defaults={"guidance_scale": 7.0})
    engine = make_engine("a/b", policy, slots=1, **options)
    try:
        driven, arguments = engine._adapter.prepare(engine._adapter.resolve(ImageRequest("a", 0, **asked)))
        assert {**driven.defaults, **arguments}["guidance_scale"] == scale
    finally:
        engine.close()


def test_a_server_refuses_a_scale_without_effect_at_its_start(monkeypatch):
    for name, options in (("FLUX.1 schnell", {"guidance_scale": 3.0}), ("SD3", {"true_cfg_scale": 3.0})):
        monkeypatch.setattr("tpdm.pipelines.loading.load.load_pipeline", lambda *names, name=name: tiny_pipe(name))
        with pytest.raises(BackboneError, match=rf"^{next(iter(options))}\b"):
            make_engine("a/b", None, **options)


def test_guidance_read_from_a_folder_equals_that_of_the_pipeline(flux):
    assert guidance_of(flux) == Guidance.of(load_pipeline(flux, device="cpu"))
    assert guidance_of("tinyworld") == Guidance.of(load_pipeline("tinyworld", device="cpu"))
