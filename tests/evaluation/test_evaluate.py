"""``tpdm eval`` end to end on the embedded model, very small: a dial, a tuned fixed schedule, an interruption."""

import json
from importlib import resources
from pathlib import Path

import pytest

from tpdm.config.loader import load_recipe
from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.evaluation import runner as compare
from tpdm.evaluation.evaluate import evaluate
from tpdm.evaluation.tasks import check_no_leakage, make_tasks
from tpdm.training.train import train

pytestmark = pytest.mark.usefixtures("small_tinyworld")
SMALL = [
    "tpm.channels=8",
    "tpm.grid=2",
    "tpm.init_steps=8",
    "tpm.init_steps_low_gamma=3",
    "sampling.max_steps=12",
    "prompts.limit=300",
    "rl.updates=1",
    "rl.prompts_per_update=2",
    "rl.samples_per_prompt=2",
    "rl.rollout_batch=4",
    "validation.prompts=2",
    "validation.gamma_points=2",
    "evaluation.prompts=4",
    "evaluation.tuning_prompts=2",
    "evaluation.step_grid=[2, 6]",
    "evaluation.step_grid_prompts=2",
    "evaluation.gamma_points=2",
    "evaluation.judges=[python:tests.support.judges:brightness]",
]


def small(folder, name, *changes):
    path = Path(str(resources.files("tpdm.config") / "recipes" / "tinyworld-quality.yaml"))
    places = [f"name={name}", f"output={folder / name}", f"evaluation.tuned_baseline={folder / 'fixed' / 'best'}"]
    return load_recipe(path, [*SMALL, *places, *changes])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_tinyworld):
    folder = tmp_path_factory.mktemp("eval")
    train(small(folder, "fixed", "tpm.time_only=true"))
    train(small(folder, "first"))
    return folder


@pytest.mark.slow
def test_fixed_schedules_are_measured_once_for_several_tpms(trained, monkeypatch):
    shared = f"evaluation.baseline_cache={trained / 'controls'}"
    train(small(trained, "second", "seed=1"))
    made = []
    judged = compare._judged
    monkeypatch.setattr(compare, "_judged", lambda *args: made.append(args[0]) or judged(*args))
    evaluate(small(trained, "first", shared), trained / "one")
    assert "best grid 2" in made
    made.clear()
    evaluate(small(trained, "second", shared), trained / "two")
    before = {path.stem for path in (trained / "one" / "rows").glob("*.jsonl")}
    assert "tpdm" in made
    assert "best_grid_2" not in before  # it lies with what is shared
    assert (trained / "controls" / "rows" / "best_grid_2.jsonl").exists()
    assert "best grid 2" not in made


def without_clock(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_the_same(trained, monkeypatch):
    recipe = small(trained, "first")
    evaluate(recipe, trained / "whole")
    made = []
    judged = compare._judged

    def counted(*args):
        made.append(args[0])
        return judged(*args)

    def killed(*args):
        if len(made) == 9:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(compare, "_judged", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, trained / "again")
    first = list(made)
    monkeypatch.setattr(compare, "_judged", counted)
    evaluate(recipe, trained / "again")
    second = made[len(first) :]
    monkeypatch.setattr(compare, "_judged", judged)
    made.clear()
    evaluate(recipe, trained / "whole")
    assert not made  # a finished one measures nothing again
    assert len(second) > len(first)
    whole, again = (
        [json.loads(line) for line in (trained / name / "results.jsonl").read_text().splitlines()]
        for name in ("whole", "again")
    )
    assert without_clock(whole) == without_clock(again)
    assert_points(trained / "again")
    assert_summary(json.loads((trained / "again" / "summary.json").read_text()))
    page = (trained / "again" / "report.html").read_text()
    for heading in ("Where the gain comes from", "Quality setting"):
        assert heading in page


def assert_points(folder):
    rows = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    assert {row["quality"] for row in rows} == {0.0, 1.0}
    assert len({(row["quality"], row["policy"], row["index"]) for row in rows}) == len(rows)


def assert_summary(summary):
    names = [row["name"] for row in summary["rows"]]
    assert names[0] == "tpdm"
    equal = ["default, equal steps", "best grid, equal steps", "tuned by the same training, equal steps"]
    assert set(equal) <= set(names)
    assert {"error control", "shuffled schedules of tpdm", "mean schedule of tpdm"} <= set(names)
    steps = {row["name"]: row["steps_mean"] for row in summary["rows"]}
    for name in [*equal, "mean schedule of tpdm", "shuffled schedules of tpdm"]:
        assert steps[name] == pytest.approx(steps["tpdm"])
    oracle = summary["oracle"]
    assert oracle["oracle"] >= oracle["fixed"] - 1e-9
    assert oracle["images"] == 2
    assert len(summary["points"]) == 2
    for point in summary["points"]:
        assert {"default, equal steps", "best grid, equal steps"} <= set(point["paired"])
        assert point["paired"]["best grid, equal steps"].keys() >= {"reward", "accuracy", "win_rate", "worst"}


@pytest.mark.slow
def test_a_tuned_schedule_that_looks_at_images_is_refused(trained):
    wrong = small(trained, "first", f"evaluation.tuned_baseline={trained / 'first' / 'best'}")
    with pytest.raises(ConfigError, match="time_only=true"):
        evaluate(wrong, trained / "refused")


def test_a_backbone_that_training_offloads_is_offloaded_here_too(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone\.offload is model on the CPU"):
        make_tasks(small(tmp_path, "first", "backbone.offload=model", "backbone.device=cpu"))


def test_prompts_that_the_tpm_was_trained_on_are_refused(trained, tmp_path, caplog):
    recipe = small(trained, "first")
    check_no_leakage(recipe, *make_tasks(recipe))
    assert not caplog.records
    for change in ("prompts.held_out_fraction=0.6", "validation.prompts=1"):
        other = small(trained, "first", change)
        with pytest.raises(ConfigError, match=rf"used \d+ of the 6 prompts .*{change.split('=')[0]} was"):
            evaluate(other, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    more = small(trained, "first", "prompts.limit=400", "sampling.max_steps=9")  # others, and none that it knows
    check_no_leakage(more, *make_tasks(more))
    assert "differ from those of the training: sampling.max_steps was 12 and is 9" in caplog.text
    elsewhere = small(tmp_path, "no-run", "prompts.held_out_fraction=0.6")
    check_no_leakage(elsewhere, *make_tasks(elsewhere))


def test_what_is_missing_is_said_before_anything_is_made(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"contains no trained TPM\. .* Train it first"):
        evaluate(small(tmp_path, "first"))
    lost = small(trained, "first", "evaluation.features=clip:x", "evaluation.reference=nowhere")
    with pytest.raises(ConfigError, match=r"evaluation\.reference is nowhere, which is not a folder"):
        evaluate(lost, tmp_path / "refused")
