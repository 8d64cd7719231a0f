"""The experiments on tinyworld, at a size that shows nothing: trained once, judged, and written to page and results."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.quality import (
    ablations_page,
    distillation,
    oracle,
    second_order,
    specialists,
    stability,
    trained_tpms,
    trainings,
)
from benchmarks.quality.ablations_page import reached
from benchmarks.quality.comparison import worst_lost
from benchmarks.quality.experiments import EXPERIMENTS, GRID, TUNED
from benchmarks.quality.frontier_page import judges, verdicts
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


FRONTIER = ("--seeds", "0", "--tuned", "1")
GENERATED = re.compile(r"(<!-- [^>]*: generated -->).*?(<!-- end of [^>]* -->)", re.DOTALL)


@pytest.fixture(scope="module")
def frontier(tmp_path_factory):
    """A folder where the frontier of one seed was trained, evaluated and written once, for all tests of the module."""
    folder = tmp_path_factory.mktemp("frontier")
    run(
        "frontier",
        folder,
        *FRONTIER,
        "--picture",
        folder / "frontier.png",
        "--set",
        *SMALL,
        "tpm.init_steps_low_gamma=3",
    )
    return folder


def run(name, folder, *words):
    """Runs an experiment with everything that it writes below a folder."""
    page = folder / "page.md"
    if not page.exists():
        shown = (ROOT / "docs" / "frontier.md").read_text(encoding="utf-8")
        page.write_text(GENERATED.sub(r"\1\n\2", shown), encoding="utf-8")  # or what is committed would be found in it
    command = ["-m", "benchmarks.quality", name, "--runs", folder / "runs", "--page", page]
    done = run_python([*command, "--out", folder / "results.json", *words], small=True)
    assert done.returncode == 0, done.stderr


def test_a_training_that_was_kept_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TPDM_TRAINED", str(tmp_path / "kept"))
    monkeypatch.setattr(trained_tpms, "MANIFEST", tmp_path / "trained.json")
    (tmp_path / "trained.json").write_text("{}")
    begun = []

    def train(recipe):
        begun.append(recipe.name)
        for name in trained_tpms.FILES:
            write_text(Path(recipe.output) / name, f"{name} of {recipe.name}")

    monkeypatch.setattr(trainings, "train", train)

    def recipe(name, *changes):
        return trainings.recipe_of(name, tmp_path / name, 0, changes, "tinyworld")

    trainings.trained(recipe("first"), kept=True)
    again = trainings.trained(recipe("second", "evaluation.prompts=7", "backbone.device=cpu"))
    assert (Path(again.output) / "best" / "model.safetensors").read_text() == "best/model.safetensors of first"
    trainings.trained(recipe("third", "rl.updates=7"))
    assert begun == ["first", "third"]
    (tmp_path / "kept" / trainings.training_hash(recipe("first")) / "metrics.jsonl").write_text("another run's")
    with pytest.raises(ValueError, match="is not the file of trained"):
        trainings.trained(recipe("fourth"))


def test_the_manifest_has_the_hash_of_what_it_says():
    manifest = trained_tpms.manifest()
    assert len(manifest) == 20
    for name, known in manifest.items():
        assert hashlib.sha256(json.dumps(known["changes"], sort_keys=True).encode()).hexdigest()[:12] == name
        assert len(known["sha256"]) == 7


def test_the_page_says_where_judges_disagree_with_the_reward():
    def point(quality, reward, accuracy, residual):
        names = {"reward": reward, "accuracy": accuracy, "residual": residual}
        minus = {name: {"mean": [mean, mean - 0.1, mean + 0.1]} for name, mean in names.items()}
        return {"quality": quality, "minus": {GRID: minus, TUNED: {"of": 0}}}

    agreeing = [point(0, 0.2, 0.2, -0.2), point(1, -0.2, -0.2, 0.2)]
    assert "at every point" in judges({"points": agreeing})
    said = judges({"points": [*agreeing, point(0.5, 0.2, -0.05, 0.2), point(0.75, -0.2, -0.2, -0.3)]})
    assert "accuracy at quality 0.5 against the best hand-made grid (worse, not significantly); residual" in said
    assert "residual at quality 0.5 against the best hand-made grid (worse, significantly)" in said
    assert "residual at quality 0.75 against the best hand-made grid (better, significantly)" in said
    assert said.count("against") == 3


@pytest.mark.slow
def test_the_frontier_is_trained_once_and_written(frontier):
    tmp_path, place = frontier, [*FRONTIER, "--picture", frontier / "frontier.png"]
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
    run("frontier", tmp_path, *place, "--set", *SMALL, "tpm.init_steps_low_gamma=3")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("run.json")} == made
    run("frontier", tmp_path, *place, "--render")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_a_second_order_solver_is_compared_with_28_euler_steps(tmp_path):
    run("second_order", tmp_path, "--seeds", "0", "1", "--set", *SMALL)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert facts["solver"] == "dpmpp_2m"
    assert len(facts["steps"]) == 2
    assert facts["minus"]["static-28, euler"]["of"] == 2
    assert "| minus 28 Euler steps" in (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_tpms_are_compared_on_prompts_that_the_frontier_did_not_show(tmp_path, frontier):
    shutil.copytree(frontier / "runs", tmp_path / "runs")
    words = ["--seeds", "0", "--seen", "4", "--prompts", "3", "--set", *SMALL, "tpm.init_steps_low_gamma=3"]
    run("other_prompts", tmp_path, *words)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert facts["prompts"] == 3
    assert [point["quality"] for point in facts["points"]] == [0, 1]
    assert facts["points"][0]["minus"]["best grid, equal steps"]["of"] == 1
    assert "mean steps (over seeds)" in (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_longer_training_is_compared_with_its_best_validation(tmp_path):
    run("stability", tmp_path, "--seeds", "0", "--set", *SMALL)
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [len(curve) for curve in facts["validations"]] == [2]
    worst, least = facts["worst"][0]
    assert least <= worst
    assert "of 1 seeds" in (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_tpm_for_all_gammas_is_compared_with_a_specialist_at_each(tmp_path, frontier):
    shutil.copytree(frontier / "runs", tmp_path / "frontier")
    words = ["--seeds", "0", "--frontier-runs", tmp_path / "frontier", "--set", *SMALL, "tpm.init_steps_low_gamma=3"]
    run("specialists", tmp_path, *words)
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
    shutil.rmtree(tmp_path / "frontier")
    before = (tmp_path / "results.json").read_text(encoding="utf-8")
    run("specialists", tmp_path, *words, "--kept")  # on another machine
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_oracle_never_loses_to_the_schedule_it_began_with(tmp_path, frontier):
    shutil.copytree(frontier / "runs", tmp_path / "frontier")
    size = ["--images", "3", "--steps", "2", "3", "--candidates", "2", "--rounds", "1", "--seeds", "0", "1"]
    words = [*size, "--frontier-runs", tmp_path / "frontier", "--set", *SMALL, "tpm.init_steps_low_gamma=3"]
    run("oracle", tmp_path, *words)
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
    run("oracle", tmp_path, *words)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")} == made


@pytest.mark.slow
def test_a_taught_tpm_is_compared_with_one_that_learnt_alone(tmp_path):
    words = ["--seeds", "0", "1", "--images", "20", "--set", *SMALL, "validation.every=1"]
    run("distillation", tmp_path, *words)
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
    run("ablations", tmp_path, *words)
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in rows] == ["trajectory", "decision", "none", "0.002"]
    assert rows[0]["curve"] == rows[2]["curve"]
    end, gamma = rows[0]["curve"][-1], 0.9982  # eq. (9), which is what was trained for
    paid = end["score"] * (1 - gamma ** end["steps"]) / (end["steps"] * (1 - gamma))
    assert end["objective"] == pytest.approx(paid, abs=1e-6)
    assert len([*(tmp_path / "runs").iterdir()]) == 3
    text = page.read_text(encoding="utf-8")
    assert text.count("| ratio |") == 2
    kept = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "ablations").iterdir()}
    assert set(kept) == {row["test"] for row in rows}
    assert all(len(test["steps"]) == len(test["score"]) == 3 for test in kept.values())
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_a_curve_reaches_an_objective_between_two_validations():
    curve = [{"trajectories": 100 * i, "objective": o} for i, o in enumerate([0.5, 0.7, 0.6, 0.8])]
    assert reached(curve, 0.6) == pytest.approx(50)
    assert reached(curve, 0.75) == pytest.approx(275)
    assert reached(curve, 0.4) == 0
    assert reached(curve, 0.9) == float("inf")


def test_the_worst_of_a_mixture_counts_both_of_what_it_may_come_to():
    mine = [{"index": i, "score": 0.0} for i in (2, 0, 1)]
    both = [{"index": i, "score": 0.5, "outcomes": [0.1 * i, 1.0], "odds": [0.9, 0.1]} for i in range(3)]
    plain = [{"index": i, "score": 0.1 * i} for i in range(3)]
    assert worst_lost([(mine, both)])[0] == -1.0  # of three images, one in ten draws
    assert worst_lost([(mine, plain), (mine, plain)])[0] == pytest.approx(-0.2)


def about(mean, size=0.05):
    return [mean, mean - size, mean + size]


def frontier_facts(reward, steps):
    """Results of two points whose reward differs from both baselines by ``reward``; ``steps`` of two seeds at each."""
    minus = {"reward": {"mean": about(reward)}}
    return {"points": [{"steps": s, "minus": {GRID: minus, TUNED: minus}} for s in steps]}


def second_order_facts(steps):
    measures = {label: {"mean": about(0.1), "seeds": [about(0.1)]} for label in ("reward", "accuracy", "residual")}
    minus = {name: measures | {"worst": about(-0.2)} for name in EXPERIMENTS["second_order"].baselines}
    return {"solver": "dpmpp_2m", "gammas": [0.99, 0.999], "steps": steps, "minus": minus, **ORIGIN}


def stability_facts(last):
    curve = [{"objective": objective, "steps": 8.0} for objective in (0.5, 1.0, last)]
    return {"validations": [curve], "worst": [about(-0.2)[:2]], "updates": 2, **ORIGIN}


def specialist_facts(gain, steps):
    minus = {"reward": {"mean": about(gain), "seeds": [about(gain)]}}
    point = {"gamma": 0.99, "reward": 1.0, "steps": [5.0], "minus": minus, "objective_minus": about(gain)}
    return {"points": [{**point, "dial_steps": [s]} for s in steps], **ORIGIN}


def oracle_facts(gain):
    found = {"steps": 5, "tried": 3, "start": "shift", "start_mean": 0.5, "tpdm_steps": [5.0]}
    found |= {key: about(0.2) for key in ("shared_minus_start", "own_minus_start", "accuracy_own_minus_start")}
    return {"search": [found | {"tpdm_minus": {"reward": {"mean": about(gain)}}}], **ORIGIN}


def distillation_facts(gain):
    oracle = {"steps": 5, "images": 2, "objective": 0.5, "single_steps": 8, "single_objective": 0.4}
    way = {"steps": [5.0], "reward": [0.5], "objective": [0.5]}
    ways = {"trained": way, "taught": {**way, "minus": {"reward": about(gain), "objective": about(gain)}}}
    return {"oracle": oracle, "likelihood": [[0.0, 1.0]], "ways": ways, **ORIGIN}


def ablation_runs(last):
    """Two variants with the same test; the curve of the second ends at ``last``, that of the first at 1."""
    rows = [{"index": 0, "steps": 5.0, "score": 0.5}, {"index": 1, "steps": 6.0, "score": 0.6}]

    def run(variant, objectives):
        curve = [{"trajectories": 100 * i, "objective": o} for i, o in enumerate(objectives)]
        return {"axis": "a", "variant": variant, "seed": 0, "gamma": 0.99, "curve": curve, "rows": rows, **ORIGIN}

    return [run("first", [0.0, 1.0, 1.0, 1.0]), run("second", [0.0, last, last, last])]


ORIGIN = {"seeds": [0], "prompts": 2, "changes": [], "versions": {}, "hardware": "one core"}
AXES = {"a": {"first": (), "second": ("rl.noise=independent",)}}
RISING = [[5.0, 6.0], [10.0, 12.0]]


@pytest.mark.parametrize(
    ("text", "good", "words", "bad", "other_words"),
    [
        (
            verdicts,
            frontier_facts(0.2, RISING),
            "hand-made grid: significantly better at 2 of 2 points, significantly worse at 0",
            frontier_facts(-0.2, RISING),
            "hand-made grid: significantly better at 0 of 2 points, significantly worse at 2",
        ),
        (
            verdicts,
            frontier_facts(0.2, RISING),
            "rise with quality throughout on 2 of 2",
            frontier_facts(0.2, [[5.0, 6.0], [10.0, 5.5]]),
            "rise with quality throughout on 1 of 2",
        ),
        (verdicts, frontier_facts(0.2, RISING), "better at 2 of 2", frontier_facts(0.01, RISING), "better at 0 of 2"),
        (second_order.part, second_order_facts([6.9]), "1 of 1 within 7", second_order_facts([7.1]), "0 of 1 within 7"),
        (stability.part, stability_facts(0.99), "on 1 of 1 seeds", stability_facts(0.97), "on 0 of 1 seeds"),
        (
            specialists.part,
            specialist_facts(-0.005, [5.0, 9.0]),
            "at 2 of 2 gammas",
            specialist_facts(-0.02, [5.0, 9.0]),
            "at 0 of 2 gammas",
        ),
        (
            specialists.part,
            specialist_facts(0.0, [5.0, 9.0]),
            "throughout on 1 of 1",
            specialist_facts(0.0, [9.0, 5.0]),
            "throughout on 0 of 1",
        ),
        (oracle.part, oracle_facts(0.1), "| **+0.1000 [+0.0500, +0.1500]** | 50 % |", oracle_facts(-0.02), "| -10 % |"),
        (distillation.part, distillation_facts(0.1), "**+0.1000 [", distillation_facts(0.01), "| +0.0100 [-0.0400"),
        (
            lambda runs: ablations_page.section(runs, AXES),
            ablation_runs(2.0),
            "| 50 | never |",
            ablation_runs(0.5),
            "| never | 50 |",
        ),
    ],
)
def test_an_experiment_tells_a_good_result_from_a_bad_one(text, good, words, bad, other_words):
    assert words in text(good)
    assert other_words not in text(good)
    assert other_words in text(bad)
    assert words not in text(bad)
