"""Paths with ``~`` or ``$NAME`` that no shell had read.

A user wrote ``output: ~/runs`` in a configuration file, and the run lay in a folder called ``~`` below the working
directory. A shell reads ``--out ~/runs``, but not ``--out=~/runs``, and neither a recipe nor a call in Python.
https://github.com/hyperopt/hyperopt/issues/72
"""

from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

import tpdm.cli.demo
import tpdm.pipelines.loading.load
import tpdm.tinyworld.build.stages
from tests.support.release import make_checkpoint
from tpdm.cli import app
from tpdm.config.loader import dump_recipe, load_recipe, make_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.errors import ConfigError, TpdmError
from tpdm.core.io import expand
from tpdm.data.prompts import load_prompts, load_source
from tpdm.evaluation.distribution import load_extractor
from tpdm.evaluation.report.build import write_report
from tpdm.evaluation.report.results import load_results
from tpdm.pipelines.loading.load import call_defaults, load_pipeline, pipeline_class
from tpdm.pipelines.metadata import pipeline_sizes
from tpdm.policies.conversion import convert
from tpdm.policies.hub.inspect import inspect_tpm
from tpdm.policies.hub.push import publish_to_folder
from tpdm.policies.pretrained import load_policy, read_config, save_pretrained
from tpdm.rewards.checkpoints import find_file
from tpdm.rewards.loading import load_reward
from tpdm.sampling.generate import sample_to_folder
from tpdm.serving.http.settings import describe_model
from tpdm.tinyworld.builtin import WEIGHTS
from tpdm.training.monitoring.dashboard import watch
from tpdm.training.train import train

GONE = "~/gone/x"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder with a TPM, a file of prompts and a recipe; the working directory is another one."""
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    (home / "tpm").symlink_to(WEIGHTS / "tpm")
    (home / "p.txt").write_text("a cat\n", encoding="utf-8")
    (home / "r.yaml").write_text("name: first\noutput: ~/run\n", encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TPDM_SCRATCH", str(home / "work"))
    monkeypatch.delenv("TPDM_NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    yield home
    assert list((tmp_path / "here").iterdir()) == []  # no folder called ~


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("~", "HOME"),
        ("~/a/b", "HOME/a/b"),
        ("$TPDM_SCRATCH/a", "HOME/work/a"),
        ("${TPDM_SCRATCH}/a", "HOME/work/a"),
        ("~/$TPDM_SCRATCH", "HOME/HOME/work"),
        ("tinyworld", "tinyworld"),
        ("owner/model", "owner/model"),
        ("a~/b", "a~/b"),
        ("cost-in-$", "cost-in-$"),
        ("/a/../b", "/a/../b"),
    ],
)
def test_what_a_path_means(home, place, wanted):
    assert expand(place) == wanted.replace("HOME", str(home))
    assert expand(Path(place)) == Path(wanted.replace("HOME", str(home)))
    assert isinstance(expand(Path(place)), Path)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("$TPDM_NOWHERE/a", "path '$TPDM_NOWHERE/a' uses the variable TPDM_NOWHERE, which is not set. Set it"),
        ("~/${TPDM_NOWHERE}", "uses the variable TPDM_NOWHERE, which is not set"),
        ("~no-such-user/a", "home folder of ~no-such-user"),
    ],
)
def test_what_means_nothing_is_refused(monkeypatch, place, words):
    for value in (None, ""):  # an empty one would begin at the root
        if value is not None:
            monkeypatch.setenv("TPDM_NOWHERE", value)
        with pytest.raises(ConfigError) as caught:
            expand(place)
        assert words in str(caught.value)


def test_what_exists_as_it_is_called_is_taken_but_for_the_home_folder(tmp_path, home, monkeypatch):
    odd = tmp_path / "odd"
    for name in ("~", "~notes", "$TPDM_NOWHERE"):
        (odd / name).mkdir(parents=True)
    monkeypatch.chdir(odd)
    assert expand("~notes") == "~notes"
    assert expand("$TPDM_NOWHERE") == "$TPDM_NOWHERE"
    assert expand("~/x") == f"{home}/x"
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize(
    "key",
    [
        "output",
        "backbone.name_or_path",
        "tpm.init_from",
        "prompts.source",
        "evaluation.tuned_baseline",
        "evaluation.baseline_cache",
        "evaluation.reference",
    ],
)
def test_every_path_of_a_recipe(home, key):
    section, _, name = key.rpartition(".")

    def value(place):
        values = {name: place, **({"features": "clip:x"} if section == "evaluation" else {})}
        recipe = asdict(make_recipe({"name": "first", **({section: values} if section else values)}))
        return (recipe[section] if section else recipe)[name]

    assert value("~/x.txt") == f"{home}/x.txt"
    assert value("$TPDM_SCRATCH/x.txt") == f"{home}/work/x.txt"
    with pytest.raises(ConfigError, match=rf"recipe: {key}: The path '\$TPDM_NOWHERE' uses the variable") as caught:
        value("$TPDM_NOWHERE")
    assert "\n" not in str(caught.value)


def test_a_run_lies_in_the_home_folder(home):
    assert make_recipe({"name": "first", "output": "~/runs/{name}"}).output == f"{home}/runs/first"
    assert Recipe(name="first", output="~/runs/{name}").output == f"{home}/runs/first"
    recipe = load_recipe("~/r.yaml", ["backbone.name_or_path=~/gone", "prompts.limit=50"])
    with pytest.raises(TpdmError, match=f"'{home}/gone'"):
        train(recipe)
    assert load_recipe(dump_recipe(recipe, "~/deep/r.yaml")) == recipe
    assert (home / "deep" / "r.yaml").is_file()


@pytest.mark.parametrize(
    "read",
    [
        load_recipe,
        load_pipeline,
        pipeline_class,
        pipeline_sizes,
        load_policy,
        inspect_tpm,
        load_results,
        lambda place: load_prompts(f"{place}.txt"),
        lambda place: load_source(f"{place}.parquet"),
        lambda place: load_source(f"hub:{place}"),
        lambda place: write_report(place, "title"),
        lambda place: watch(place, once=True),
        lambda place: convert(place, "~/converted"),
        lambda place: publish_to_folder(place, "~/published"),
        lambda place: load_reward(f"clip:{place}"),
        lambda place: load_reward(f"pickscore:{place}"),
        lambda place: load_extractor(f"clip:{place}"),
        lambda place: describe_model(place, None),
        lambda place: describe_model("tinyworld", place),
        lambda place: sample_to_folder(place, None, ["a"], 0, "~/sample"),
    ],
)
@pytest.mark.parametrize("place", [GONE, "$TPDM_SCRATCH/../gone/x"])
def test_what_is_missing_is_named_in_full(home, read, place):
    """Every function that reads: what it says shows where it looked."""
    with pytest.raises(TpdmError) as caught:
        read(place)
    assert place.replace("~", str(home)).replace("$TPDM_SCRATCH", f"{home}/work") in str(caught.value)


def test_a_reward_finds_its_file(home):
    (home / "heads").mkdir()
    (home / "heads" / "head.pth").write_bytes(b"")
    assert find_file("~/heads", "head.pth", "aesthetic") == home / "heads" / "head.pth"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", GONE], "HOME/gone/x"),
        (["train", "~/r.yaml", "--dry-run", "prompts.source=~/gone.txt"], "HOME/gone.txt"),
        (["eval", "~/r.yaml"], "HOME/run"),
        (["report", GONE], "HOME/gone/x"),
        (["watch", GONE], "HOME/gone/x"),
        (["inspect", GONE], "HOME/gone/x"),
        (["push", GONE, "--folder=~/published"], "HOME/gone/x"),
        (["push", "~/tpm", "--folder=$TPDM_NOWHERE/x"], "variable TPDM_NOWHERE"),
        (["convert", GONE, "--out=~/converted"], "HOME/gone/x"),
        (["sample", "--prompts=~/gone.txt"], "HOME/gone.txt"),
        (["sample", "--prompts=~/p.txt", "--backbone=~/gone", "--out=~/out"], "HOME/gone"),
        (["sample", "--prompts=~/p.txt", "--tpm=~/gone", "--out=~/out", "--device=cpu"], "HOME/gone"),
        (["serve", "--tpm=~/gone"], "HOME/gone"),
        (["serve", "--backbone=~/gone"], "HOME/gone"),
        (["reward", "serve", "--reward=clip:~/gone"], "HOME/gone"),
        (["demo", "--out=$TPDM_NOWHERE/x"], "variable TPDM_NOWHERE"),
        (["tinyworld", "build", "--out=$TPDM_NOWHERE/x"], "variable TPDM_NOWHERE"),
    ],
)
def test_every_path_of_the_command_line(home, words, named):
    answer = command(*words)
    assert answer.exit_code == 2, answer.output
    assert named.replace("HOME", str(home)) in answer.output.replace("\n", "")


def test_what_is_written_lies_in_the_home_folder(home, monkeypatch):
    policy = load_policy("~/tpm")
    save_pretrained(policy, read_config(home / "tpm"), "~/saved")
    assert (home / "saved" / "config.json").is_file()
    publish_to_folder("~/tpm", "~/published")
    assert (home / "published" / "README.md").is_file()
    save_file(make_checkpoint(16, 16), home / "release.safetensors")
    convert("~/release.safetensors", "~/converted")
    assert (home / "converted" / "config.json").is_file()
    sample_to_folder(
        "tinyworld",
        None,
        ["circle"],
        0,
        "~/out",
        num_inference_steps=1,
        device="cpu",
        defaults=call_defaults("tinyworld"),
    )
    assert (home / "out" / "0000.png").is_file()


def test_the_demo_and_a_build_lie_in_the_home_folder(home, monkeypatch):
    class Enough(Exception):
        pass

    def enough(*args, **options):
        raise Enough(str(args[0].output) if isinstance(args[0], Recipe) else str(args[0]))

    monkeypatch.setattr(tpdm.cli.demo, "train", enough)
    with pytest.raises(Enough, match=f"^{home}/demo/train$"):
        tpdm.cli.demo.run_demo(Path("~/demo"))
    monkeypatch.setattr(tpdm.tinyworld.build.stages, "_same_plan", enough)
    with pytest.raises(Enough, match=f"^{home}/build/work/"):
        tpdm.tinyworld.build.stages.build(out=Path("~/build"))
