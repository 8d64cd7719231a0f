"""The experiments on tinyworld, at a size that shows nothing: trained once, judged, and written to page and results."""

import hashlib
import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.processes import run_python
from tpdm.core.io import write_text

ROOT = Path(__file__).parents[1]
SMALL = [
    "tpm.channels=8",
    "tpm.grid=2",
    "tpm.init_steps=6",
    "sampling.max_steps=8",
    "prompts.limit=300",
    "rl.updates=1",
    "rl.prompts_per_update=2",
    "rl.samples_per_prompt=2",
    "rl.rollout_batch=4",
    "validation.prompts=2",
    "validation.gamma_points=2",
    "evaluation.prompts=4",
    "evaluation.tuning_prompts=2",
    "evaluation.step_grid=[2, 3]",
    "evaluation.step_grid_prompts=2",
    "evaluation.gamma_points=2",
]


GENERATED = re.compile(r"(<!-- [^>]*: generated -->).*?(<!-- end of [^>]* -->)", re.DOTALL)


def run(script, folder, *words):
    """Runs a script with everything that it writes below a folder; gives what it printed."""
    page = folder / "page.md"
    if not page.exists():
        shown = (ROOT / "docs" / "frontier.md").read_text(encoding="utf-8")
        page.write_text(GENERATED.sub(r"\1\n\2", shown), encoding="utf-8")  # or what is committed would be found in it
    command = [ROOT / "benchmarks" / script, "--runs", folder / "runs", "--page", page]
    command += ["--out", folder / "results.json", *words]
    done = run_python(command, small=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_that_was_kept_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    experiment = importlib.import_module("experiment")
    trained_tpms = importlib.import_module("trained_tpms")
    monkeypatch.setenv("TPDM_TRAINED", str(tmp_path / "kept"))
    monkeypatch.setattr(trained_tpms, "MANIFEST", tmp_path / "trained.json")
    (tmp_path / "trained.json").write_text("{}")
    begun = []

    def train(recipe):
        begun.append(recipe.name)
        for name in trained_tpms.FILES:
            write_text(Path(recipe.output) / name, f"{name} of {recipe.name}")

    monkeypatch.setattr(experiment, "train", train)

    def recipe(name, *changes):
        return experiment.recipe_of(name, tmp_path / name, 0, changes, "tinyworld")

    experiment.keep(experiment.trained(recipe("first")))
    again = experiment.trained(recipe("second", "evaluation.prompts=7", "backbone.device=cpu"))
    assert (Path(again.output) / "best" / "model.safetensors").read_text() == "best/model.safetensors of first"
    experiment.trained(recipe("third", "rl.updates=7"))
    assert begun == ["first", "third"]
    (tmp_path / "kept" / experiment.training_hash(recipe("first")) / "metrics.jsonl").write_text("another run's")
    with pytest.raises(ValueError, match="is not the file of trained"):
        experiment.trained(recipe("fourth"))


def test_the_manifest_has_the_hash_of_what_it_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    manifest = importlib.import_module("trained_tpms").manifest()
    assert len(manifest) == 20
    for name, known in manifest.items():
        assert hashlib.sha256(json.dumps(known["changes"], sort_keys=True).encode()).hexdigest()[:12] == name
        assert len(known["sha256"]) == 7


def test_the_page_says_where_judges_disagree_with_the_reward(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("frontier_page")

    def point(quality, reward, accuracy, residual):
        names = {"reward": reward, "accuracy": accuracy, "residual": residual}
        minus = {name: {"mean": [mean, mean - 0.1, mean + 0.1]} for name, mean in names.items()}
        return {"quality": quality, "minus": {page.GRID: minus, page.TUNED: {"of": 0}}}

    agreeing = [point(0, 0.2, 0.2, -0.2), point(1, -0.2, -0.2, 0.2)]
    assert "at every point" in page.judges({"points": agreeing})
    said = page.judges({"points": [*agreeing, point(0.5, 0.2, -0.05, 0.2), point(0.75, -0.2, -0.2, -0.3)]})
    assert "accuracy at quality 0.5 against the best hand-made grid (worse, not significantly); residual" in said
    assert "residual at quality 0.5 against the best hand-made grid (worse, significantly)" in said
    assert "residual at quality 0.75 against the best hand-made grid (better, significantly)" in said
    assert said.count("against") == 3


@pytest.mark.slow
def test_the_frontier_is_trained_once_and_written(tmp_path):
    place = ["--seeds", "0", "--tuned", "1", "--picture", tmp_path / "frontier.png"]
    run("frontier.py", tmp_path, *place, "--set", *SMALL, "tpm.init_steps_low_gamma=3")
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [p["quality"] for p in facts["points"]] == [0.0, 1.0]
    assert facts["prompts"] == 4
    for point in facts["points"]:
        assert point["minus"]["static-28"]["of"] == 1
        assert len(point["minus"]["best grid, equal steps"]["reward"]["mean"]) == 3
        parts = point["cap"]["capped"] + point["cap"]["others"]
        assert parts == pytest.approx(point["minus"]["static-28"]["reward"]["mean"][0])
    assert set(facts["own"]["minus"]) >= {"mean schedule of tpdm", "error control"}
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.count("| best hand-made grid |") == 2
    assert (tmp_path / "frontier.png").stat().st_size > 5_000
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("run.json")}
    run("frontier.py", tmp_path, *place, "--set", *SMALL, "tpm.init_steps_low_gamma=3")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("run.json")} == made
    run("frontier.py", tmp_path, *place, "--render")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_a_solver_of_second_order_stands_beside_28_euler_steps(tmp_path):
    run("second_order.py", tmp_path, "--seeds", "0", "1", "--set", *SMALL)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert facts["solver"] == "dpmpp_2m"
    assert len(facts["steps"]) == 2
    assert facts["minus"]["static-28, euler"]["of"] == 2
    assert "| minus 28 Euler steps" in (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_dials_are_compared_on_prompts_that_the_frontier_did_not_show(tmp_path):
    words = ["--seeds", "0", "--seen", "4", "--prompts", "3", "--set", *SMALL, "tpm.init_steps_low_gamma=3"]
    run("other_prompts.py", tmp_path, *words)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert facts["prompts"] == 3
    assert [point["quality"] for point in facts["points"]] == [0, 1]
    assert facts["points"][0]["minus"]["best grid, equal steps"]["of"] == 1
    assert "mean steps (over seeds)" in (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_longer_training_is_compared_with_its_best_validation(tmp_path):
    run("stability.py", tmp_path, "--seeds", "0", "--set", *SMALL)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [len(curve) for curve in facts["validations"]] == [2]
    worst, least = facts["worst"][0]
    assert least <= worst
    assert "of 1 seeds" in (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_dial_stands_beside_a_specialist_at_each_gamma(tmp_path):
    words = ["--seeds", "0", "--dials", tmp_path / "dials", "--set", *SMALL, "tpm.init_steps_low_gamma=3"]
    run("specialists.py", tmp_path, *words)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    gammas = [point["gamma"] for point in facts["points"]]
    assert gammas == sorted(gammas)
    assert len(gammas) == 6
    for point in facts["points"]:
        assert len(point["minus"]["reward"]["mean"]) == 3
        low, high = point["objective_minus"][1:]
        assert low <= point["objective_minus"][0] <= high
    kept = sorted((tmp_path / "specialists").iterdir())
    assert len(kept) == 6
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "dials")
    before = (tmp_path / "results.json").read_text(encoding="utf-8")
    run("specialists.py", tmp_path, *words, "--kept")  # on another machine
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_oracle_never_loses_to_the_schedule_it_began_with(tmp_path):
    size = ["--images", "3", "--steps", "2", "3", "--candidates", "2", "--rounds", "1", "--seeds", "0", "1"]
    words = [*size, "--dials", tmp_path / "dials", "--set", *SMALL, "tpm.init_steps_low_gamma=3"]
    run("oracle.py", tmp_path, *words)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for found, steps in zip(facts["search"], (2, 3), strict=True):
        assert (found["steps"], found["tried"]) == (steps, 5)
        assert found["own_minus_shared"][0] >= 0
        assert found["own_minus_start"][0] == pytest.approx(
            found["own_minus_shared"][0] + found["shared_minus_start"][0]
        )
        assert found["mean_own"][0] == 1.0
        assert found["mean_own"][-1] == 0.0
        assert len(found["tpdm_steps"]) == found["tpdm_minus"]["of"] == 2
    assert "| own for each image |" in (tmp_path / "page.md").read_text(encoding="utf-8")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    assert len(made) == 2
    run("oracle.py", tmp_path, *words)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")} == made


@pytest.mark.slow
def test_a_taught_tpm_stands_beside_one_that_learnt_alone(tmp_path):
    words = ["--seeds", "0", "1", "--images", "20", "--set", *SMALL, "validation.every=1"]
    run("distillation.py", tmp_path, *words)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert facts["oracle"]["images"] == 20
    assert facts["oracle"]["objective"] >= facts["oracle"]["single_objective"]
    for before, after in facts["likelihood"]:
        assert after >= before
    assert list(facts["ways"]) == ["trained", "taught", "taught, then trained"]
    for one in facts["ways"].values():
        assert len(one["objective"]) == 2
        assert all(high >= low for _, low, high in one.get("minus", {}).values())
    assert "| taught, then trained |" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_an_ablation_that_axes_share_is_trained_once_and_drawn(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- ablations: generated -->\n<!-- end of ablations -->\n", encoding="utf-8")
    small = ["rl.updates=1", "rl.prompts_per_update=2", "validation.prompts=2", "prompts.limit=100"]
    small += ["evaluation.prompts=3", "evaluation.tuning_prompts=2"]
    words = ["--axes", "ratio", "entropy", "--seeds", "0", "--picture", tmp_path / "a.png", "--set", *small]
    printed = run("ablations.py", tmp_path, *words)
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in rows] == ["trajectory", "decision", "none", "0.002"]
    assert rows[0]["curve"] == rows[2]["curve"]
    end, gamma = rows[0]["curve"][-1], 0.9982  # eq. (9), which is what was trained for
    paid = end["score"] * (1 - gamma ** end["steps"]) / (end["steps"] * (1 - gamma))
    assert end["objective"] == pytest.approx(paid, abs=1e-6)
    assert len([*(tmp_path / "runs").iterdir()]) == 3
    assert printed.count("| ratio |") == 2
    kept = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "ablations").iterdir()}
    assert set(kept) == {row["test"] for row in rows}
    assert all(len(test["steps"]) == len(test["score"]) == 3 for test in kept.values())
    assert printed.split("-->")[0].strip() in page.read_text(encoding="utf-8")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_a_curve_reaches_an_objective_between_two_validations(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("ablations_page")
    curve = [{"trajectories": 100 * i, "objective": o} for i, o in enumerate([0.5, 0.7, 0.6, 0.8])]
    assert page.reached(curve, 0.6) == pytest.approx(50)
    assert page.reached(curve, 0.75) == pytest.approx(275)
    assert page.reached(curve, 0.4) == 0
    assert page.reached(curve, 0.9) == float("inf")


def test_the_worst_of_a_mixture_counts_both_of_what_it_may_come_to(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    experiment = importlib.import_module("experiment")
    mine = [{"index": i, "score": 0.0} for i in (2, 0, 1)]
    both = [{"index": i, "score": 0.5, "outcomes": [0.1 * i, 1.0], "odds": [0.9, 0.1]} for i in range(3)]
    plain = [{"index": i, "score": 0.1 * i} for i in range(3)]
    assert experiment.worst_lost([(mine, both)])[0] == -1.0  # of three images, one in ten draws
    assert experiment.worst_lost([(mine, plain), (mine, plain)])[0] == pytest.approx(-0.2)
