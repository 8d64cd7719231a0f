"""Settings that are taken and change nothing.

Of every option of ``tpdm sample`` and of every key of a recipe: another value changes the result, or is refused, or is
one of memory and places, or is said to have no effect. A new setting fails here until it stands in one of the tables.
https://github.com/vladmandic/sdnext/issues/4097
"""

import inspect
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tpdm.pipelines.loading.load
from tests.support.gaussian_problem import make_small_problem
from tests.support.tiny_sd3 import make_tiny_sd3
from tests.test_artifact import config_of
from tpdm.cli import app
from tpdm.cli.sample import sample
from tpdm.config.loader import _KEYS, _SECTIONS, make_recipe
from tpdm.config.unused_keys import _UNUSED, unused_keys, warn_unused_keys
from tpdm.core.errors import TpdmError
from tpdm.data.prompts import load_source
from tpdm.pipelines.loading.load import pipeline_arguments
from tpdm.pipelines.probe import FeatureWidths, infer_feature_shapes
from tpdm.policies.pretrained import save_pretrained
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.training.initialization import init_policy, init_times
from tpdm.training.loop import train_loop
from tpdm.training.run_identity import FREE

ROOT = Path(__file__).parents[2]


# tpdm sample


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def places(tmp_path_factory, sd3):
    """Folders of two TPMs, with a dial and without, and a file of prompts."""
    folder = tmp_path_factory.mktemp("places")
    widths = infer_feature_shapes(sd3, {"max_sequence_length": 4})
    for name, dial in (("dial", (0.9, 0.99)), ("tpm", None)):
        shape = TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2, gamma_range=dial)
        policy = TimePredictionModule(shape, seed=1)
        with torch.no_grad():  # loud enough that the dial is heard
            policy.fc2.weight.mul_(40)
        points = ((0.9, 3.0), (0.99, 9.0)) if dial else None
        config = config_of(
            policy.shape, call_defaults={"max_sequence_length": 4}, max_steps=9, gamma_steps=points, gamma=0.95
        )
        save_pretrained(policy, config, folder / name)
    (folder / "p.csv").write_text("caption,text,avoid,bad\nc,d,e,f\na,b,g,h\n", encoding="utf-8")
    return folder


@pytest.fixture
def drawn(monkeypatch, sd3, tmp_path, places):
    """What ``tpdm sample`` does with these words: its sentence, or what was loaded and drawn."""
    loaded = []

    def load(*names, **options):
        loaded.append((names, options))
        return sd3

    monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", load)
    monkeypatch.chdir(tmp_path)

    def draw(*words, out="runs/sample"):
        loaded.clear()
        answer = CliRunner().invoke(app, ["sample", *(str(word).replace("AT", str(places)) for word in words)])
        if answer.exit_code:
            assert isinstance(answer.exception, SystemExit), answer.exception
            return answer.output.strip().splitlines()[-1]
        folder = tmp_path / out
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
        return str(loaded), [(line, (folder / line["file"]).read_bytes()) for line in lines]

    return draw


STOCK = ("--prompt", "a", "--num-inference-steps", "3")
OF_FILE = ("--prompt-column", "text", "--negative-column", "avoid", "--limit", "1")
FILE = (
    "--prompts",
    "AT/p.csv",
    *OF_FILE,
    "--num-inference-steps",
    "2",
    "--guidance-scale",
    "4",
)  # negatives want guidance
DIAL = ("--prompt", "a", "--tpm", "AT/dial")
# option: (words, the same with another value or the option left out)
OPTIONS = {
    "backbone": (STOCK, (*STOCK, "--backbone", "a/b")),
    "tpm": (("--prompt", "a", "--tpm", "AT/tpm"), ("--prompt", "a")),
    "prompt": (STOCK, (*STOCK, "--prompt", "b")),
    "prompts": (STOCK, (*STOCK, *FILE)),
    "prompt_column": (FILE, (*FILE, "--prompt-column", "caption")),
    "negative_column": (FILE, (*FILE, "--negative-column", "bad")),
    "limit": (FILE, (*FILE, "--limit", "2")),
    "seed": (STOCK, (*STOCK, "--seed", "1")),
    "device": (STOCK, (*STOCK, "--device", "cpu")),
    "dtype": (STOCK, (*STOCK, "--dtype", "bf16")),
    "guidance_scale": (STOCK, (*STOCK, "--guidance-scale", "2")),
    "max_steps": (DIAL, (*DIAL, "--max-steps", "2")),
    "num_inference_steps": (STOCK, (*STOCK, "--num-inference-steps", "2")),
    "steps": (STOCK, (*STOCK[:2], "--steps", "2")),  # the name of version 0.1
    "gamma": ((*DIAL, "--gamma", "0.98"), (*DIAL, "--gamma", "0.91")),
    "quality": ((*DIAL, "--quality", "1"), (*DIAL, "--quality", "0")),
}
# By the tests of what they are of: where pictures are written, guidance of other names, files of other names.
OTHERS = {"out", "true_cfg_scale", "variant"}


def test_every_option_of_sample_is_tried():
    assert set(inspect.signature(sample).parameters) - OTHERS == set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_another_value_changes_what_is_drawn(drawn, option):
    one, other = (drawn(*words) for words in OPTIONS[option])
    assert not isinstance(one, str), one
    assert not isinstance(other, str), other
    assert one != other


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*DIAL, "--num-inference-steps", "3"), "num_inference_steps is 3, but a TPM chooses"),
        ((*STOCK, "--max-steps", "3"), "max_steps is 3, but there is no TPM"),
        ((*STOCK, "--gamma", "0.9"), "gamma is 0.9, but there is no TPM"),
        ((*STOCK, "--quality", "0.5"), "quality is 0.5, but there is no TPM"),
        ((*DIAL, "--gamma", "0.95", "--quality", "0.5"), "gamma"),
        ((*DIAL, "--gamma", "0.5"), "0.5"),
        (("--prompt", "a", "--tpm", "AT/tpm", "--gamma", "0.95"), "not gamma-conditioned"),
        ((*STOCK, "--limit", "1"), "--limit is 1 without --prompts"),
        ((*STOCK, "--prompt", " "), "empty prompt"),
        ((), "There is no prompt"),
    ],
)
def test_what_cannot_act_is_refused(drawn, words, sentence):
    said = drawn(*words)
    assert isinstance(said, str)
    assert said.startswith("Error: ")
    assert sentence in said


# Recipes: training

# key: (what else the recipe says, another value)
TRAINED = {
    "seed": ({}, 1),
    "optimizer.lr": ({}, 1e-2),
    "optimizer.lr_schedule": ({}, "constant"),
    "optimizer.warmup_updates": ({}, 2),
    "optimizer.beta1": ({}, 0.5),
    "optimizer.beta2": ({}, 0.5),
    "optimizer.eps": ({}, 1.0),
    "optimizer.weight_decay": ({}, 0.5),
    "optimizer.grad_clip": ({}, 1e-4),
    "optimizer.ema_decay": ({}, 0.9),
    "rl.updates": ({}, 3),
    "rl.prompts_per_update": ({}, 5),
    "rl.samples_per_prompt": ({}, 2),
    "rl.noise": ({}, "independent"),
    "rl.epochs": ({}, 2),
    "rl.clip": ({}, 1e-5),
    "rl.ratio": ({}, "decision"),
    "rl.normalize_advantages": ({}, "group"),
    "rl.entropy_weight": ({}, 0.1),
    "rl.kl_weight": ({}, 0.1),
    "reward.form": ({}, "discounted"),
    "reward.step_cost": ({}, 0.1),
    "reward.gamma": ({"reward": {"form": "discounted", "step_cost": 0}}, 0.5),
    "reward.offset": ({"reward": {"form": "discounted", "step_cost": 0}}, 3.0),
    "reward.gamma_range": ({"reward": {"form": "discounted", "step_cost": 0}}, (0.9, 0.99)),
    "validation.every": ({}, 1),
    "validation.samples_per_prompt": ({}, 2),
    "validation.gamma_points": ({"reward": {"form": "discounted", "step_cost": 0, "gamma_range": (0.9, 0.99)}}, 3),
    "checkpoint.every": ({}, 1),
    "checkpoint.keep": ({"checkpoint": {"every": 1}}, 1),
}
SMALL = {
    "rl": {"updates": 2, "prompts_per_update": 3, "samples_per_prompt": 3},
    "validation": {"every": 2},
    "tpm": {"time_only": True},  # which is not calibrated
}


def trained(folder, said, key=None, value=None):
    """Rows without clocks, weights, and names of the files of a short training; or its sentence."""
    sections = {name: {**SMALL.get(name, {}), **said.get(name, {})} for name in {*SMALL, *said}}
    if key is not None:
        section, _, name = key.rpartition(".")
        sections = (
            {**sections, section: {**sections.get(section, {}), name: value}} if section else {**sections, name: value}
        )
    recipe, parts = make_small_problem(folder, **sections)
    weights = {}

    def save(name, policy, facts):
        weights[name] = {key: tensor.tolist() for key, tensor in policy.state_dict().items()}

    train_loop(recipe, replace(parts, validation_prompts=parts.validation_prompts[:6], save=save), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return plain, weights, files


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The training without the change, once for each of the others."""
    known = {}

    def train(said):
        if str(said) not in known:
            known[str(said)] = trained(tmp_path_factory.mktemp("base"), said)
        return known[str(said)]

    return train


@pytest.mark.parametrize("key", TRAINED)
def test_another_value_changes_the_training(tmp_path, base, key):
    said, value = TRAINED[key]
    if key == "reward.form":
        with pytest.raises(TpdmError, match=r"reward\.step_cost is 0\.03 with form discounted"):
            trained(tmp_path, said, key, value)
        said = {"reward": {"step_cost": 0}}
    assert trained(tmp_path, said, key, value) != base(said)


# Recipes: the TPM, the prompts, the pipeline's arguments

WIDTHS = FeatureWidths(12, 16, (4, 4))
TPM = {
    "layout": ({}, "release"),
    "features": ({}, "guided"),
    "channels": ({}, 16),
    "grid": ({}, 4),
    "init_alpha": ({}, 1.0),
    "init_beta": ({}, 0.5),
    "init_steps": ({"init_shift": 1.0, "init_steps": 4}, 5),
    "init_shift": ({"init_shift": 1.0, "init_steps": 4}, 2.0),
    "time_only": ({}, True),
    "feature_maps": ({}, "last"),
    "velocity_change": ({}, True),
}


@pytest.mark.parametrize("key", TPM)
def test_another_value_changes_the_tpm(key):
    said, value = TPM[key]

    def made(**more):
        recipe = make_recipe({"name": "a", "tpm": {"channels": 8, "grid": 2, **said, **more}})
        policy = init_policy(recipe, WIDTHS, init_times(recipe.tpm, None, {}))
        return asdict(policy.shape), {name: tensor.tolist() for name, tensor in policy.state_dict().items()}

    assert made() != made(**{key: value})


PROMPTS = {
    "source": ({}, "b.csv"),
    "column": ({"column": "prompt"}, "text"),
    "negative": ({"negative": "avoid"}, "bad"),
    "limit": ({}, 1),
}


@pytest.mark.parametrize("key", PROMPTS)
def test_another_value_changes_the_prompts(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a.csv", "a,b,c,d\ne,f,g,h\n"), ("b.csv", "i,j,k,l\n")):
        (tmp_path / name).write_text(f"prompt,text,avoid,bad\n{rows}", encoding="utf-8")
    said, value = PROMPTS[key]

    def read(**more):
        p = make_recipe({"name": "a", "prompts": {"source": "a.csv", **said, **more}}).prompts
        return load_source(p.source, p.column, p.limit, p.negative, p.subset, p.split)

    assert read() != read(**{key: value})


@pytest.mark.parametrize("values", [{"guidance_scale": 2.0}, {"height": 64, "width": 32}])
def test_another_value_changes_the_call(values):
    plain, other = (pipeline_arguments(make_recipe({"name": "a", "backbone": v}).backbone) for v in ({}, values))
    assert {**plain, **values} == other != plain


# Recipes: what has no effect beside other keys

IDLE = [
    ("reward.gamma", {"reward": {"form": "additive", "gamma": 0.9}}),
    ("reward.offset", {"reward": {"form": "additive", "offset": 3.0}}),
    ("reward.timeout", {"reward": {"timeout": 5.0}}),
    ("reward.token_env", {"reward": {"token_env": "TOKEN"}}),
    ("tpm.init_alpha", {"tpm": {"init_steps": 9, "init_alpha": 1.0}}),
    ("tpm.grid", {"tpm": {"layout": "release", "grid": 4}}),
    ("tpm.velocity_change", {"tpm": {"time_only": True, "velocity_change": True}}),
    ("tpm.feature_maps", {"tpm": {"time_only": True, "feature_maps": "last"}}),
    ("tpm.features", {"tpm": {"time_only": True, "features": "guided"}}),
    ("tpm.init_alpha", {"tpm": {"init_from": "x", "init_alpha": 1.0}}),
    ("tpm.init_beta", {"tpm": {"init_from": "x", "init_beta": 0.5}}),
    ("tpm.init_steps", {"tpm": {"init_from": "x", "init_steps": 9}}),
    ("tpm.init_shift", {"tpm": {"init_from": "x", "init_steps": 9, "init_shift": 1.0}}),
    (
        "tpm.init_steps_low_gamma",
        {"tpm": {"init_from": "x", "init_steps": 9, "init_steps_low_gamma": 3}, "reward": {"gamma_range": (0.9, 0.98)}},
    ),
    ("rl.normalize_advantages", {"rl": {"normalize_advantages": "gamma"}}),
    ("validation.gamma_points", {"validation": {"gamma_points": 3}}),
    ("evaluation.gamma_points", {"evaluation": {"gamma_points": 3}}),
    ("tracker_project", {"tracker_project": "mine", "trackers": ["tensorboard"]}),
]
# A key that acts in the same place: nothing is said of it.
ACTING = [
    {"reward": {"gamma": 0.9}},
    {"reward": {"form": "additive", "step_cost": 0.1}},
    {"reward": {"name": "remote:http://localhost:1", "timeout": 5.0, "token_env": "TOKEN"}},
    {"reward": {"timeout": 5.0}, "validation": {"judges": ["remote:http://localhost:1"]}},
    {"tpm": {"init_alpha": 1.0, "grid": 4, "velocity_change": True, "feature_maps": "last"}},
    {"tpm": {"init_steps": 9, "init_beta": 0.5, "init_shift": 1.0}},
    {
        "reward": {"gamma_range": (0.9, 0.98)},
        "rl": {"normalize_advantages": "gamma"},
        "validation": {"gamma_points": 3},
    },
    {"tracker_project": "mine", "trackers": ["trackio"]},
]


@pytest.mark.parametrize(("key", "values"), IDLE)
def test_a_key_without_effect_is_said(caplog, key, values):
    recipe = make_recipe({"name": "a", **values})
    said = [sentence for sentence in unused_keys(recipe) if sentence.startswith(f"{key} ")]
    assert len(said) == 1
    assert " has no effect: " in said[0]
    warn_unused_keys(recipe)
    assert said[0] in caplog.text


@pytest.mark.parametrize("values", ACTING)
def test_nothing_is_said_of_a_key_that_acts(values):
    assert unused_keys(make_recipe({"name": "a", **values})) == []


def test_every_sentence_is_tried():
    assert {key for key, _, _ in _UNUSED} == {key for key, _ in IDLE}


# Recipes: no key is forgotten

# Tested where a whole run or an evaluation is at hand; the file names the key.
ELSEWHERE = {
    "backbone.name_or_path": "tests/training/test_plan.py",
    "backbone.dtype": "tests/pipelines/test_load.py",
    "backbone.true_cfg_scale": "tests/field",
    "backbone.variant": "tests/field",
    "tpm.init_from": "tests/training/test_initialization.py",
    "tpm.init_steps_low_gamma": "tests/evaluation/test_evaluate.py",
    "sampling.solver": "tests/pipelines/test_attach.py",
    "sampling.max_steps": "tests/pipelines/test_attach.py",
    "sampling.stop_below": "tests/pipelines/test_attach.py",
    "reward.name": "tests/rewards/test_loading.py",
    "reward.parts": "tests/training/test_composite.py",
    "prompts.held_out_fraction": "tests/evaluation/test_evaluate.py",
    "validation.prompts": "tests/evaluation/test_evaluate.py",
    "evaluation.prompts": "tests/evaluation/test_evaluate.py",
    "evaluation.tuning_prompts": "tests/evaluation/test_evaluate.py",
    "evaluation.step_grid": "tests/evaluation/test_evaluate.py",
    "evaluation.step_grid_prompts": "tests/evaluation/test_evaluate.py",
    "evaluation.tuned_baseline": "tests/evaluation/test_evaluate.py",
    "evaluation.baseline_cache": "tests/evaluation/test_evaluate.py",
    "evaluation.judges": "tests/evaluation/test_evaluate.py",
    "evaluation.gamma_points": "tests/evaluation/test_evaluate.py",
    "evaluation.samples_per_prompt": "tests/evaluation",
    "evaluation.features": "tests/evaluation/test_evaluate.py",
    "evaluation.reference": "tests/evaluation/test_evaluate.py",
}


def test_every_key_of_a_recipe_is_tried():
    """``FREE`` keys are of memory, places and looks: a run may change them half-way."""
    tried = {*TRAINED, *(f"tpm.{key}" for key in TPM), *(f"prompts.{key}" for key in PROMPTS), *ELSEWHERE, *FREE}
    tried |= {"backbone.guidance_scale", "backbone.height", "backbone.width"}
    assert set(_KEYS) - _SECTIONS - tried == set()


@pytest.mark.parametrize("key", ELSEWHERE)
def test_what_is_tried_elsewhere_is(key):
    if key not in _KEYS:
        pytest.skip("no key of this version")
    path = ROOT / ELSEWHERE[key]
    files = [path] if path.is_file() else path.rglob("test_*.py")
    name = key.rpartition(".")[2]
    assert any(name in file.read_text(encoding="utf-8") for file in files if file != Path(__file__))
