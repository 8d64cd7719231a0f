"""The benchmarks of speed and reliability on tiny shapes, their verdicts, and the pages that they generate."""

import json
import shutil
from collections import Counter
from importlib import import_module

import pytest
import torch

from benchmarks.command import RESULTS, ROOT, sections_of
from benchmarks.page import with_sections
from benchmarks.quality.experiments import EXPERIMENTS
from benchmarks.reliability import kill_resume, soak
from benchmarks.reliability.__main__ import BENCHMARKS as RELIABILITY
from benchmarks.speed import rollout_ways, serving, training
from benchmarks.speed.__main__ import BENCHMARKS as SPEED
from benchmarks.speed.serving import tables
from benchmarks.speed.serving.assigned import assigned_gamma, steps_of
from benchmarks.speed.training import whole_training
from tests.support.processes import run_python
from tpdm.core.io import save_tensors, write_json

GB = 1e9
PACKAGES = {"quality": EXPERIMENTS, "speed": SPEED, "reliability": RELIABILITY}
PAGES = [(package, name) for package, table in PACKAGES.items() for name, one in table.items() if one.page]


def speed(*words, small=False):
    run = run_python(["-m", "benchmarks.speed", *words], small=small)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_the_list_names_every_benchmark_and_what_it_writes(package):
    run = run_python(["-m", f"benchmarks.{package}", "--list"])
    for name, one in PACKAGES[package].items():
        assert f"\n{name}: {one.measures}\n    {one.takes}; writes {one.results}" in run.stdout
        assert (ROOT / one.results).exists() or one.results.startswith("runs/")
    assert run_python(["-m", f"benchmarks.{package}", "fronteir"]).returncode == 1


@pytest.mark.parametrize(("package", "name"), PAGES)
def test_a_page_is_what_its_committed_results_generate(package, name):
    benchmark, module = PACKAGES[package][name], import_module(f"benchmarks.{package}.{name}")
    text = (ROOT / "docs" / benchmark.page).read_text(encoding="utf-8")
    results = [json.loads((ROOT / benchmark.results).read_text(encoding="utf-8"))]
    if name == "serving":
        small = json.loads((RESULTS / "serving-small.json").read_text(encoding="utf-8"))
        results += [small, {"shape": "sd3-medium"}]  # the last has not been measured
    for facts in results:
        sections = sections_of(benchmark, module, facts, RESULTS)
        assert with_sections(text, sections) == text
        changed = {name: f"{section}!" for name, section in sections.items()}
        assert with_sections(text, changed) != text


def test_a_section_needs_its_marks():
    with pytest.raises(ValueError, match="'results' occur 0 times"):
        with_sections("no marks", {"results": ""})


def test_real_size_counts_the_denoiser_and_the_tpm():
    rows = json.loads(speed("real_size", "--tiny"))["operations"]
    assert [row["name"] for row in rows] == ["SD3, tiny", "FLUX.1, tiny"]
    for row, width in zip(rows, (128, 256), strict=True):
        # A pass multiplies every image token with most of the weights at least once.
        assert row["step_operations"] > row["denoiser_parameters"]
        assert row["share_pooled"] > 0
        assert row["replay_bytes"] == 2 * (2 * width * 8 * 8 + width)


@pytest.mark.slow
def test_serving_compares_the_ways_and_tries_mixes(tmp_path):
    out = tmp_path / "serving.json"
    for options in (["--images", "4", "--repeats", "1", "--loads", "1.5"], ["--images", "1", "--mixes", "1"]):
        speed("serving", "--slots", "2", "--out", out, *options, small=True)
    facts = json.loads(out.read_text(encoding="utf-8"))
    (run,) = facts["runs"]
    ways = run["saturated"]["ways"]
    assert list(ways) == ["alone", "static", "cut", "steps"]
    assert len({way["steps"] for way in ways.values()}) == 1  # the same images
    assert ways["static"]["rows"] > ways["cut"]["rows"] == ways["steps"]["rows"] == ways["steps"]["steps"]
    assert ways["steps"]["calls"] < ways["alone"]["calls"]
    assert len(run["latency"]) == 8
    assert facts["mixes"]["steps_differ"] == 0


def test_serving_at_a_shape_of_random_weights_takes_assigned_steps_at_every_size(tmp_path):
    out = tmp_path / "serving.json"
    few = ["--images", "3", "--slots", "2", "--repeats", "1", "--loads", "--sizes", "32", "48", "--device", "cpu"]
    speed("serving", "--shape", "tiny", "--out", out, *few)
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert [one["side"] for one in runs] == [32, 48]
    asked = [float(steps_of(torch.tensor(assigned_gamma(seed)))) for seed in range(3)]
    for one in runs:
        ways = one["saturated"]["ways"]
        assert {way["steps"] for way in ways.values()} == {sum(asked) / 3}
        assert ways["static"]["rows"] == (2 * max(asked[:2]) + asked[2]) / 3
        assert ways["cut"]["rows"] == ways["steps"]["rows"] == sum(asked) / 3


def test_latency_can_be_measured_again_with_more_images(tmp_path):
    out = tmp_path / "serving.json"
    words = ["serving", "--shape", "tiny", "--out", out, "--slots", "2", "--device", "cpu"]
    size = ["--sizes", "32"]
    first = ["--images", "2", "--repeats", "1", "--loads", "1.5", "--arrivals", "poisson", *size]
    again = ["--images", "3", "--latency", "--loads", "1.5", "2.5", "--arrivals", "poisson"]
    again += ["--ways", "static", "steps"]
    for options in (first, again):
        speed(*words, *options)
    facts = json.loads(out.read_text(encoding="utf-8"))
    (run,) = facts["runs"]
    found = [(row["load"], row["way"], row["images"]) for row in run["latency"]]
    older = [(1.5, "alone", 2), (1.5, "static", 3), (1.5, "cut", 2), (1.5, "steps", 3)]
    assert found == [*older, (2.5, "static", 3), (2.5, "steps", 3)]
    assert facts["images"] == 2
    assert "above that of static ones" in tables.latency(facts)


def test_serving_at_the_published_shape_wants_a_gpu():
    run = run_python(["-m", "benchmarks.speed", "serving", "--shape", "sd3-medium", "--device", "cpu", "--print"])
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("--shape sd3-medium takes hours on cpu. It needs a GPU.")


@pytest.mark.slow
def test_the_plans_of_sd3_medium_and_flux_stay_within_common_cards():
    sd3, flux = json.loads(speed("memory_plan", "--print"))["plans"]
    assert (sd3["recipe"], flux["recipe"]) == ("sd3-medium", "flux1-dev")
    assert sd3["trajectories"] == flux["trajectories"] == 256
    for plan in (sd3, flux):
        counted = {part["name"]: part["bytes"] for part in plan["parts"]}
        assert None not in counted.values()
        assert counted["transformer (frozen)"] > 2 * 2e9
    assert max(sd3["peaks"]["device"].values()) < 24 * GB
    assert max(sd3["peaks"]["host"].values()) < 16 * GB
    assert max(flux["peaks"]["device"].values()) < 48 * GB


@pytest.mark.slow
def test_training_beside_a_plain_loop_has_the_same_numbers():
    facts = json.loads(speed("training", "--shape", "tiny", "--repeats", "1", "--device", "cpu"))
    (row,) = facts["beside_a_plain_loop"]
    assert row["equal_steps"]
    assert row["weights_apart"] < 1e-4
    assert sum(facts["shares"]["0"].values()) == pytest.approx(1)
    of_size = {r["side"]: r for r in facts["memory"] if (r["steps"], r["group"]) == (8, 4)}
    assert len({r["bytes"] for r in of_size.values()}) == 1  # flat in resolution
    assert of_size[512]["plain_bytes"] > 60 * of_size[64]["plain_bytes"]


def test_a_whole_training_is_the_integral_over_its_stages():
    def stage(update, plain):
        ours = {"rollout": 3.0, "reward": 1.0, "update": 1.0}
        seconds = [{"ours": ours, "plain": {"rollout": plain - 6, "reward": 1.0, "update": 5.0}}]
        return {"update": update, "trajectories": 10, "steps_mean": plain, "seconds": seconds}

    found = whole_training([stage(0, 10.0), stage(20, 20.0), stage(60, 20.0)])
    assert found["updates"] == 60
    assert found["steps_mean"] == (20 * 15 + 40 * 20) / 60
    assert found["ratio"]["median"] == (20 * 15 + 40 * 20) / (60 * 5)
    assert found["update_ratio"]["median"] == 5
    assert found["trajectories_per_second"]["median"] == 10 / 5


def test_rollout_speed_counts_the_rows_that_leave():
    results = json.loads(speed("rollout_speed", "--shape", "tiny"))
    steps, rows = results["rollout"]["steps"], results["rollout"]["rows"]
    # Two rows an image, under guidance.
    assert (rows["leave"], rows["stay"]) == (2 * sum(steps), 2 * len(steps) * max(steps))
    assert rows["leave"] / rows["stay"] == pytest.approx(results["rollout"]["bound"])
    assert results["rollout"]["time_ratio"]["median"] > 0
    assert results["learning"]["decisions"] > 0
    assert "CPU threads" in results["hardware"] or "peak_bytes" in results


@pytest.mark.slow
def test_rollouts_that_wait_and_that_do_not_compute_the_same_rows():
    facts = json.loads(speed("rollout_ways", "--images", "6", "--batch", "3", "--repeats", "1", "--print"))
    assert facts["images_whose_steps_differ"] == 0
    assert facts["rows"]["continuous"] == facts["rows"]["waiting"]
    assert facts["calls"]["continuous"] <= facts["calls"]["waiting"]


def test_step_level_batches_that_answer_later_are_named():
    def facts(p95):
        row = {"arrivals": "Poisson", "load": 0.5, "p50": 1.0, "steps": 2.0, "rows": 2.0}
        cells = [{**row, "way": "static", "p95": 2.0}, {**row, "way": "steps", "p95": p95}]
        return {"images": 3, "runs": [{"side": 64, "capacity": 1.0, "latency": cells}]}

    assert "above that of static ones: nowhere (1 cases)" in tables.latency(facts(1.9))
    assert "above that of static ones: Poisson at 50% (1 cases)" in tables.latency(facts(2.1))


@pytest.mark.parametrize(
    ("module", "good", "bad", "words"),
    [
        (rollout_ways, {"images_whose_steps_differ": 0}, {"images_whose_steps_differ": 2}, "2 images take other steps"),
        (serving, {"mixes": {"steps_differ": 0}}, {"mixes": {"steps_differ": 1}}, "1 images of random mixes"),
        (
            training,
            {"beside_a_plain_loop": [{"update": 0, "equal_steps": True}]},
            {"beside_a_plain_loop": [{"update": 0, "equal_steps": True}, {"update": 20, "equal_steps": False}]},
            "other steps after update 20",
        ),
        (
            soak,
            {"promises": {"none lost": True}, "problems": []},
            {"promises": {"none lost": False, "drained": True}, "problems": ["a step out of order"]},
            "none lost (problems: ['a step out of order'])",
        ),
        (kill_resume, {"differing": []}, {"differing": ["state.json: update"]}, "first state.json: update"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_verdict_passes_good_results_and_names_what_is_broken(module, good, bad, words):
    assert module.broken(good) == []
    (broken,) = module.broken(bad)
    assert words in broken


def soaked(**changes):
    """What a soak without a problem has seen, with changes; the promises that it does not keep."""
    tally = soak.Tally(Counter(answered=2), Counter({"200": 2}), [], 2, 2, 0, {("a", 1, None): Counter({(3, "x"): 2})})
    memory = {"slope_times_run_mib": 1.0, "third_mib": 100.0}
    idle = {f"tpdm_images_{name}_total": 0 for name in ("cancelled", "expired", "failed", "refused")}
    idle |= {"tpdm_images_finished_total": 3, "tpdm_queue_waiting": 0, "tpdm_slots_in_use": 0}
    drained = {"answered": 6, "asked": 6, "exit_code": 0, "refused_status": 503, "retry_after": "1"}
    seen = {"tally": tally, "refused": {}, "memory": memory, "idle": idle, "drained": drained, "log": ""}
    for name, value in changes.items():
        if isinstance(seen[name], dict):
            seen[name] |= value
        elif name == "tally":
            vars(tally).update(value)
        else:
            seen[name] = value
    return [name for name, kept in soak.report(**seen)["promises"].items() if not kept]


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, None),
        ({"tally": {"outcomes": Counter(answered=1, lost=1)}}, "none lost"),
        ({"idle": {"tpdm_images_finished_total": 4}}, "none lost"),
        ({"tally": {"problems": ["a step out of order"]}}, "none answered twice or out of order"),
        ({"tally": {"statuses": Counter({"200": 1, "500": 1})}}, "no 5xx"),
        ({"log": "12:00 ERROR broken"}, "no error in the log"),
        ({"idle": {"tpdm_queue_waiting": 1}}, "queue empty"),
        ({"memory": {"slope_times_run_mib": 4.0}}, "memory flat"),
        (
            {"tally": {"pictures": {("a", 1, None): Counter({(3, "x"): 1, (4, "y"): 1})}}},
            "equal steps for equal requests",
        ),
        ({"drained": {"answered": 5}}, "drained"),
        ({"drained": {"refused_status": 200}}, "refused while draining"),
    ],
)
def test_a_soak_keeps_its_promises_or_says_which_is_broken(changes, broken):
    assert soaked(**changes) == ([] if broken is None else [broken])


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_equal_to_one_in_one_piece():
    command = ["-m", "benchmarks.reliability", "kill_resume", "--kills", "1", "--updates", "3", "--print"]
    small = ["rl.prompts_per_update=2", "rl.samples_per_prompt=2", "prompts.limit=100", "validation.prompts=2"]
    small += ["sampling.max_steps=6", "tpm.channels=8", "tpm.grid=2", "tpm.init_steps=4"]
    run = run_python([*command, "--set", *small], small=True)
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert (facts["kills"], facts["differing"], facts["equal"]) == (1, [], True)
    assert sum(facts["while"].values()) == 1
    assert facts["files_compared"] > 5


def test_what_differs_between_two_runs_is_named_by_file_and_key(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    row = {"kind": "train", "update": 1, "score_mean": 0.5, "seconds": 1.0, "reward_seconds": 0.1, "learn_seconds": 0.2}
    whole.mkdir()
    (whole / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (whole / "recipe.yaml").write_text(f"output: {whole}\n")
    write_json(whole / "state.json", {"update": 1, "seconds": 1.0})
    write_json(whole / "sha256.json", {"policy.safetensors": "a", "state.json": "b"})
    save_tensors(whole / "policy.safetensors", {"one": torch.zeros(2), "two": torch.ones(2)})
    shutil.copytree(whole, run)
    later = row | {"seconds": 9.0, "reward_seconds": 9.0, "learn_seconds": 9.0}
    (run / "metrics.jsonl").write_text(json.dumps(later) + "\n")
    (run / "recipe.yaml").write_text(f"output: {run}\n")
    write_json(run / "state.json", {"update": 1, "seconds": 9.0})
    write_json(run / "sha256.json", {"policy.safetensors": "a", "state.json": "c"})
    (run / ".writing-1").write_text("left by a kill")
    assert kill_resume.differences(whole, run) == []
    (run / "metrics.jsonl").write_text(json.dumps(later | {"score_mean": 0.6}) + "\n" + json.dumps(later) + "\n")
    save_tensors(run / "policy.safetensors", {"one": torch.zeros(2), "two": torch.zeros(2)})
    (run / "recipe.yaml").unlink()
    assert kill_resume.differences(whole, run) == [
        "metrics.jsonl: line 1: score_mean",
        "metrics.jsonl: line 2: kind",
        "metrics.jsonl: line 2: score_mean",
        "metrics.jsonl: line 2: update",
        "policy.safetensors: two",
        "recipe.yaml: digest",
    ]
