"""The commands: their help, their exit codes, what they hand to the library."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
from PIL import Image
from typer.testing import CliRunner

import tpdm.cli.doctor
import tpdm.pipelines.loading.load
from tests.support.tiny_sd3 import make_tiny_sd3
from tests.test_artifact import config_of
from tpdm.cli import app
from tpdm.cli.doctor import Finding
from tpdm.core.errors import BackboneError, ConfigError, PromptError, TrainingError
from tpdm.data.prompts import Prompt
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.pretrained import save_pretrained
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.sampling.generate import BATCH, sample_to_folder

COMMANDS = ["train", "sample", "eval", "demo", "doctor", "watch", "inspect", "push", "tinyworld build", "reward serve"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def library(monkeypatch):
    """Puts a stand-in for a library function in place; returns the list of its calls."""

    def stand_in(module, function, result=None, error=None):
        calls = []

        def record(*args, **options):
            calls.append((args, options))
            if error is not None:
                raise error
            return result

        fake = ModuleType(module)
        setattr(fake, function, record)
        # Parents as well: `from tpdm.training.train import train` looks each of them up.
        parent = module.rpartition(".")[0]
        if parent not in ("tpdm", "tpdm.tinyworld"):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return stand_in


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: first\noutput: {tmp_path}/{{name}}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_can_be_copied(command):
    answer = run(*command.split(), "--help")
    assert answer.exit_code == 0
    assert f"Example:\n    tpdm {command}" in answer.output


def test_help_and_version():
    for command in COMMANDS:
        assert f"  {command.split()[0]} " in run("--help").output
    assert run("--version").output.startswith("tpdm 0.")


def test_unknown_commands_and_options_are_refused():
    assert run("nope").exit_code == 2
    assert run("demo", "--sed", "1").exit_code == 2
    assert run("demo", "--seed", "-1").exit_code == 2


def test_the_command_line_loads_no_torch():
    heavy = {"torch", "diffusers", "transformers", "numpy"}
    code = f"import sys, tpdm.cli; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-c", "from tpdm.cli import main; main()", "train", str(tmp_path / "no.yaml")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("Error: ")
    assert "no.yaml cannot be read" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


def test_train_hands_over_the_recipe_with_its_overrides(library, recipe):
    calls = library("tpdm.training.train", "train")
    answer = run("train", recipe, "rl.updates=3", "seed=5")
    assert answer.exit_code == 0, answer.output
    ((handed,), options) = calls[0]
    assert (handed.name, handed.rl.updates, handed.seed, options) == ("first", 3, 5, {"resume": "auto"})
    assert str(recipe.parent / "first") in answer.output


def test_eval_hands_over_the_recipe(library, recipe):
    calls = library("tpdm.evaluation.evaluate", "evaluate")
    assert run("eval", recipe, "name=other").exit_code == 0
    assert calls[0][0][0].name == "other"


def test_demo_and_build(library, tmp_path):
    demo = library("tpdm.cli.demo", "run_demo")
    assert run("demo", "--out", tmp_path, "--seed", 3).exit_code == 0
    assert demo == [((), {"out": tmp_path, "seed": 3})]
    build = library("tpdm.tinyworld.build.stages", "build")
    assert run("tinyworld", "build", "--out", tmp_path, "--quick").exit_code == 0
    assert build == [((), {"out": tmp_path, "seed": 0, "quick": True})]


def test_a_bad_override_never_reaches_training(library, recipe):
    calls = library("tpdm.training.train", "train")
    answer = run("train", recipe, "rl.update=3")
    assert answer.exit_code == 2
    assert "Did you mean rl.updates?" in answer.output
    assert calls == []


@pytest.mark.parametrize(("error", "code"), [(TrainingError("all is lost"), 2), (KeyboardInterrupt(), 130)])
def test_errors_and_interruptions_of_the_library(library, recipe, error, code):
    library("tpdm.training.train", "train", error=error)
    answer = run("train", recipe)
    assert answer.exit_code == code
    expected = "Error: all is lost" if code == 2 else "to resume from the last checkpoint"
    assert expected in answer.output
    assert len(answer.output.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["sample --prompt a --out", "push tinyworld --folder"])
def test_an_unwritable_path_is_reported_first(monkeypatch, tmp_path, command):
    monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names: pytest.fail("loaded"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    answer = run(*command.split(), tmp_path / "file" / "x")
    assert answer.exit_code == 2
    assert re.search(r"Error: \S+ cannot be used \(.*\)\. Correct the path", answer.output)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve --tpm tinyworld --max-replicas 4", "Only --replicas starts Ray"),
        ("push tinyworld --folder out --private", "Use --hub"),
        ("sample --prompt a --device nowhere", "device is 'nowhere', which cannot be used here"),
        ("reward serve --device nowhere", "device is 'nowhere'"),
        ("serve --device nowhere", "device is 'nowhere'"),
    ],
)
def test_options_without_effect_are_refused(monkeypatch, tmp_path, command, words):
    monkeypatch.chdir(tmp_path)
    answer = run(*command.split())
    assert answer.exit_code == 2
    assert words in answer.output


@pytest.mark.parametrize("command", ["report somewhere", "eval RECIPE", "demo"])
def test_a_report_without_its_packages_says_what_to_install(monkeypatch, recipe, command):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith(("tpdm.evaluation", "tpdm.cli.demo"))]:
        monkeypatch.delitem(sys.modules, name)
    answer = run(*command.replace("RECIPE", str(recipe)).split())
    assert answer.exit_code == 2
    assert "pip install 'tpdm[eval]'" in answer.output


def test_a_mistake_of_ours_keeps_its_traceback(library, recipe):
    library("tpdm.training.train", "train", error=ZeroDivisionError())
    assert isinstance(run("train", recipe).exception, ZeroDivisionError)


def test_the_doctor_says_how_to_mend(monkeypatch):
    monkeypatch.setattr(tpdm.cli.doctor, "_weights", lambda: Finding("tinyworld", "no weights", "build", True))
    answer = run("doctor")
    assert answer.exit_code == 1
    assert "no weights  -> build" in answer.output
    assert "torch" in answer.output
    monkeypatch.setattr(tpdm.cli.doctor, "_weights", lambda: Finding("tinyworld", "weights are there"))
    monkeypatch.setattr(tpdm.cli.doctor, "_extra", lambda module, extra: Finding(module, "1.0"))
    monkeypatch.setattr(tpdm.cli.doctor, "_disk", lambda: Finding("disk", "9 GB free"))
    answer = run("doctor")
    assert answer.exit_code == 0
    assert "The demo can run" in answer.output


def test_the_doctor_finds_what_is_missing():
    assert tpdm.cli.doctor._package("no-such-package").fix == "pip install no-such-package"
    assert tpdm.cli.doctor._extra("no_such_module", "train").fix == "pip install 'tpdm[train]'"
    optional = tpdm.cli.doctor._optional("no_such_module", "serve", "serving")
    assert (optional.fix, optional.stops_demo) == ("pip install 'tpdm[serve]'", False)


def test_the_doctor_looks_at_every_extra_that_users_install():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = {extra for extra, _ in tpdm.cli.doctor.OPTIONAL.values()} | set(tpdm.cli.doctor.EXTRAS.values())
    assert named == set(re.findall(r"^(\w+) = \[", section, re.MULTILINE)) - {"dev", "docs"}


def test_the_doctor_looks_for_the_embedded_pipeline(monkeypatch, tmp_path):
    monkeypatch.setattr(tpdm.cli.doctor.resources, "files", lambda package: tmp_path)
    assert tpdm.cli.doctor._weights().stops_demo
    pipeline = tmp_path / "tinyworld" / "weights" / "pipeline"
    pipeline.mkdir(parents=True)
    (pipeline / "model_index.json").write_text("{}", encoding="utf-8")
    assert tpdm.cli.doctor._weights() == Finding("tinyworld", "weights are there")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def tiny(monkeypatch, sd3):
    """Any backbone is a real SD3 pipeline of random weights."""
    monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names: sd3)


def test_sample_writes_pictures_and_lines(tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("c\nd\n", encoding="utf-8")
    out = tmp_path / "out"
    command = ["sample", "--backbone", "a/b", "--prompt", "a", "--prompts", tmp_path / "prompts.txt"]
    answer = run(*command, "--seed", 7, "--num-inference-steps", 3, "--out", out)
    assert answer.exit_code == 0, answer.output
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["prompt"], line["seed"], line["steps"]) for line in lines] == [
        ("a", 7, 3),
        ("c", 8, 3),
        ("d", 9, 3),
    ]
    assert all(line["times"][0] == 1.0 and line["times"][-1] == 0.0 for line in lines)
    assert sorted(path.name for path in out.iterdir()) == [
        "0000.png",
        "0001.png",
        "0002.png",
        "samples.jsonl",
    ]
    assert "0002.png  3 steps  d" in answer.output


def test_a_picture_depends_on_its_seed_and_schedule_alone(tiny, tmp_path):
    stock = sample_to_folder("a/b", None, ["a", "b"], 3, tmp_path / "stock", num_inference_steps=4)
    policy = FixedSchedule(stock[1]["times"])
    again = sample_to_folder("a/b", policy, ["b"], 4, tmp_path / "alone")
    assert again[0]["times"] == pytest.approx(stock[1]["times"], abs=1e-6)
    with (
        Image.open(tmp_path / "stock" / "0001.png") as one,
        Image.open(tmp_path / "alone" / "0000.png") as other,
    ):
        # Two rows or one in a batch: rounding may turn a pixel by one of 255.
        pairs = zip(one.tobytes(), other.tobytes(), strict=True)
        assert max(abs(p - q) for p, q in pairs) <= 1


def test_an_interrupted_run_leaves_lines_of_the_pictures_that_are_there(tiny, sd3, tmp_path, monkeypatch):
    (tmp_path / "samples.jsonl").write_text('{"prompt": "old", "file": "0000.png"}\n', encoding="utf-8")
    told = []

    def stop(line):
        told.append(line["file"])
        if len(told) == BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_to_folder("a/b", None, ["a"] * (BATCH + 1), 0, tmp_path, num_inference_steps=1, callback=stop)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["file"] for line in lines] == told == sorted(path.name for path in tmp_path.glob("*.png"))

    def broken(**options):
        raise KeyboardInterrupt

    broken.components = {}  # type: ignore[attr-defined]
    monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names: broken)
    with pytest.raises(KeyboardInterrupt):
        sample_to_folder("a/b", None, ["b"], 0, tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()  # it would speak of pictures of another run


def test_a_prompt_that_is_not_read_to_its_end_is_said(tiny, tmp_path, caplog):
    sample_to_folder("a/b", None, ["a"], 0, tmp_path, num_inference_steps=1)
    assert not caplog.records
    sample_to_folder("a/b", None, ["a", "a " * 200], 0, tmp_path, num_inference_steps=1)
    assert "1 of 2 prompts have more than the 12 tokens that tokenizer of the pipeline reads" in caplog.text


def test_a_prompt_that_stands_twice_in_a_file_is_drawn_twice(tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\nb\na\n", encoding="utf-8")
    options = ["--prompts", tmp_path / "prompts.txt", "--num-inference-steps", 1, "--out", tmp_path / "out"]
    answer = run("sample", "--backbone", "a/b", *options)
    assert answer.exit_code == 0, answer.output
    assert "0002.png  1 steps  a" in answer.output


def test_sample_hands_over_device_and_dtype(library):
    calls = library("tpdm.sampling.generate", "sample_to_folder", [])
    assert run("sample", "--prompt", "a", "--device", "cpu", "--dtype", "bf16").exit_code == 0
    [(_, options)] = calls
    assert (options["device"], options["dtype"]) == ("cpu", "bf16")


def test_the_stock_pipeline_is_not_asked_for_what_it_does_not_know(monkeypatch, tmp_path):
    class Pictures:
        components: ClassVar = {}

        def __call__(self, prompt, generator):
            pytest.fail("called")

    class Videos(Pictures):
        def __call__(self, prompt, generator, num_frames=81):
            pytest.fail("called")

    for pipe, words in ((Pictures(), "Pictures has no argument negative_prompt"), (Videos(), "generates videos")):
        monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names, pipe=pipe: pipe)
        with pytest.raises(BackboneError, match=words):
            sample_to_folder("a/b", None, [Prompt("a", "blur")], 0, tmp_path)


def test_pictures_are_replaced_and_the_rest_is_left(tiny, tmp_path):
    (tmp_path / "0000.png").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    sample_to_folder("a/b", None, ["a"], 0, tmp_path, num_inference_steps=2)
    assert (tmp_path / "0000.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.fixture
def calls_of_pipe(monkeypatch):
    """The arguments of every call of a pipeline that stands in for any backbone."""
    calls = []

    def pipe(**options):
        calls.append(options)
        return SimpleNamespace(images=[Image.new("RGB", (2, 2))] * len(options["prompt"]))

    pipe.components = {}  # type: ignore[attr-defined]
    pipe.scheduler = SimpleNamespace(  # type: ignore[attr-defined]
        config=SimpleNamespace(num_train_timesteps=1000), timesteps=[1000.0, 500.0]
    )
    monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names: pipe)
    return calls


def test_defaults_and_guidance_reach_the_pipeline(calls_of_pipe, tmp_path):
    sample_to_folder("a/b", None, ["a"], 0, tmp_path, 2.5, defaults={"guidance_scale": 3.0, "extra": 0})
    [seen] = calls_of_pipe
    assert (seen["guidance_scale"], seen["extra"], seen["prompt"]) == (2.5, 0, ["a"])
    assert "num_inference_steps" not in seen
    assert "negative_prompt" not in seen


@pytest.mark.parametrize("place", [0, BATCH])
def test_a_negative_prompt_means_the_same_to_every_call_of_a_run(calls_of_pipe, tmp_path, place):
    prompts = [Prompt("a", "blur") if i == place else Prompt("a") for i in range(BATCH + 1)]
    sample_to_folder("a/b", None, prompts, 0, tmp_path)
    said = [negative for call in calls_of_pipe for negative in call["negative_prompt"]]
    assert said == [prompt.negative or "" for prompt in prompts]


@pytest.mark.parametrize(
    ("trained", "options", "rows"),
    [
        ({"guidance_scale": 3.0}, {}, 2),
        ({"guidance_scale": 3.0}, {"guidance_scale": 1.0}, 1),
        ({}, {}, 1),
        (None, {}, 1),
    ],
)
def test_what_a_tpm_was_trained_with_goes_before_what_its_backbone_wants(tiny, sd3, tmp_path, trained, options, rows):
    """And what the user says before both: guided, a step of an image has two rows."""
    tpm, seen = FixedSchedule([1.0, 0.5, 0.0]), set()
    if trained is not None:
        widths = infer_feature_shapes(sd3, {"max_sequence_length": 4})
        policy = TimePredictionModule(TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2))
        config = config_of(policy.shape, call_defaults={**trained, "max_sequence_length": 4}, max_steps=2)
        tpm = save_pretrained(policy, config, tmp_path / "tpm")
    handle = sd3.transformer.proj_out.register_forward_pre_hook(lambda m, args: seen.add(len(args[0])))
    try:
        sample_to_folder("a/b", tpm, ["a"], 0, tmp_path / "out", defaults={"guidance_scale": 1.0}, **options)
    finally:
        handle.remove()
    assert seen == {rows}


@pytest.mark.parametrize(
    ("tpm", "prompts", "options", "error"),
    [
        (None, [], {}, PromptError),
        (None, ["a", " "], {}, PromptError),
        ("folder", ["a"], {"num_inference_steps": 3}, ConfigError),
        (None, ["a"], {"max_steps": 3}, ConfigError),
        (None, ["a"], {"guidance_scale": float("inf")}, ConfigError),
        (None, ["a", "b"], {"seed": 2**63 - 1}, ConfigError),
    ],
)
def test_sampling_refuses_before_it_loads(monkeypatch, tmp_path, tpm, prompts, options, error):
    monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names: pytest.fail("loaded"))
    with pytest.raises(error):
        sample_to_folder("a/b", tpm, prompts, **{"seed": 0, **options}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_served_reward_gets_what_was_asked_for(library, monkeypatch):
    calls = library("tpdm.serving.reward_server", "serve")
    places = library("tpdm.serving.http.sockets", "reserved", result=nullcontext("sockets"))
    monkeypatch.setenv("TPDM_TEST_TOKEN", "s3cret")
    options = ["--host", "0.0.0.0", "--port", "8081", "--device", "cpu"]
    answer = run("reward", "serve", "--reward", "python:math:hypot", *options, "--token-env", "TPDM_TEST_TOKEN")
    assert answer.exit_code == 0, answer.output
    (reward, sockets, token), _ = calls[0]
    assert (reward.name, sockets, token) == ("python:math:hypot", "sockets", "s3cret")
    assert places[0][0] == ("0.0.0.0", 8081)
    assert "Anyone who can reach" not in answer.output
    open_to_all = run("reward", "serve", "--reward", "python:math:hypot", *options)
    assert "Warning: no --token-env given. Anyone who can reach 0.0.0.0:8081 can use this reward." in open_to_all.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reward", "nope"], "must be one of tinyworld"),
        (["--token-env", "TPDM_NO_SUCH_TOKEN"], "Environment variable 'TPDM_NO_SUCH_TOKEN' is not set"),
        (["--port", "0"], "Invalid value for '--port'"),
    ],
)
def test_what_cannot_be_served(library, options, words):
    calls = library("tpdm.serving.reward_server", "serve")
    library("tpdm.serving.http.sockets", "reserved", result=nullcontext("sockets"))
    answer = run("reward", "serve", *options)
    assert answer.exit_code == 2
    assert words in answer.output
    assert calls == []


def test_serving_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "tpdm.serving.reward_server", raising=False)
    monkeypatch.setattr("tpdm.serving.http.sockets.reserved", lambda host, port: nullcontext("sockets"))
    answer = run("reward", "serve", "--reward", "python:math:hypot")
    assert answer.exit_code == 2
    assert "pip install 'tpdm[serve]'" in answer.output
