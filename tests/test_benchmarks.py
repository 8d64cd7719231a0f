"""The benchmark at real size, on tiny shapes: what it counts is there and in proportion."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.support.processes import run_python

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "real_size.py"
GB = 1e9


def test_real_size_counts_the_denoiser_and_the_tpm():
    run = run_python([SCRIPT, "--tiny"])
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)
    assert [row["name"] for row in rows] == ["SD3, tiny", "FLUX.1, tiny"]
    for row, width in zip(rows, (128, 256), strict=True):
        # A pass multiplies every image token with most of the weights at least once.
        assert row["step_operations"] > row["denoiser_parameters"]
        assert row["share_pooled"] > 0
        assert row["replay_bytes"] == 2 * (2 * width * 8 * 8 + width)


@contextmanager
def benchmark_modules():
    """Benchmarks are scripts: their modules are found beside them."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))


SERVING = Path(__file__).parents[1] / "benchmarks" / "serving.py"


@pytest.mark.slow
def test_serving_compares_the_ways_and_tries_mixes(tmp_path):
    out = tmp_path / "serving.json"
    common = [SERVING, "--slots", "2", "--out", out]
    for options in (["--images", "4", "--repeats", "1", "--loads", "1.5"], ["--images", "1", "--mixes", "1"]):
        run = run_python([*common, *options], small=True)
        assert run.returncode == 0, run.stderr
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
    words = [SERVING, "--shape", "tiny", "--out", out, *few]
    run = run_python(words)
    assert run.returncode == 0, run.stderr
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert [one["side"] for one in runs] == [32, 48]
    with benchmark_modules():
        from shapes import assigned_dial, steps_of

        asked = [float(steps_of(torch.tensor(assigned_dial(seed)))) for seed in range(3)]
    for one in runs:
        ways = one["saturated"]["ways"]
        assert {way["steps"] for way in ways.values()} == {sum(asked) / 3}
        assert ways["static"]["rows"] == (2 * max(asked[:2]) + asked[2]) / 3
        assert ways["cut"]["rows"] == ways["steps"]["rows"] == sum(asked) / 3


def test_latency_can_be_measured_again_with_more_images(tmp_path):
    out = tmp_path / "serving.json"
    words = [SERVING, "--shape", "tiny", "--out", out, "--slots", "2", "--device", "cpu"]
    size = ["--sizes", "32"]
    first = ["--images", "2", "--repeats", "1", "--loads", "1.5", "--arrivals", "poisson", *size]
    again = [
        "--images",
        "3",
        "--latency",
        "--loads",
        "1.5",
        "2.5",
        "--arrivals",
        "poisson",
        "--ways",
        "static",
        "steps",
    ]
    for options in (first, again):
        run = run_python([*words, *options])
        assert run.returncode == 0, run.stderr
    facts = json.loads(out.read_text(encoding="utf-8"))
    (run,) = facts["runs"]
    found = [(row["load"], row["way"], row["images"]) for row in run["latency"]]
    older = [(1.5, "alone", 2), (1.5, "static", 3), (1.5, "cut", 2), (1.5, "steps", 3)]
    assert found == [*older, (2.5, "static", 3), (2.5, "steps", 3)]
    assert facts["images"] == 2
    with benchmark_modules():
        from serving_parts.tables import latency
    assert "above that of static ones" in latency(facts)


def test_serving_at_the_published_shape_wants_a_gpu():
    words = [SERVING, "--shape", "sd3-medium", "--device", "cpu", "--out", "-"]
    run = run_python(words)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("got --shape sd3-medium on cpu, expected a GPU")


def test_the_page_on_serving_shows_the_committed_results():
    with benchmark_modules():
        import serving
        from serving_parts.tables import page
    text = serving.PAGE.read_text(encoding="utf-8")
    assert page(text, serving.all_results()) == text


@pytest.mark.slow
def test_the_plans_of_sd3_medium_and_flux_stay_within_common_cards():
    script = BENCHMARKS / "memory_plan.py"
    run = run_python([script, "--print"])
    assert run.returncode == 0, run.stderr
    sd3, flux = json.loads(run.stdout)
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
    script = SCRIPT.with_name("training.py")
    few = ["--shape", "tiny", "--repeats", "1", "--processes", "1", "--device", "cpu"]
    run = run_python([script, *few])
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
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

    with benchmark_modules():
        from training import whole_training
    found = whole_training([stage(0, 10.0), stage(20, 20.0), stage(60, 20.0)])
    assert found["updates"] == 60
    assert found["steps_mean"] == (20 * 15 + 40 * 20) / 60
    assert found["ratio"]["median"] == (20 * 15 + 40 * 20) / (60 * 5)
    assert found["update_ratio"]["median"] == 5
    assert found["trajectories_per_second"]["median"] == 10 / 5


def test_rollout_speed_counts_the_rows_that_leave():
    command = [BENCHMARKS / "rollout_speed.py", "--shape", "tiny"]
    run = run_python(command)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    steps, rows = results["rollout"]["steps"], results["rollout"]["rows"]
    # Two rows an image, under guidance.
    assert (rows["leave"], rows["stay"]) == (2 * sum(steps), 2 * len(steps) * max(steps))
    assert rows["leave"] / rows["stay"] == pytest.approx(results["rollout"]["bound"])
    assert results["rollout"]["time_ratio"]["median"] > 0
    assert results["learning"]["decisions"] > 0
    assert "CPU threads" in results["hardware"] or "peak_bytes" in results


@pytest.mark.slow
def test_rollouts_that_wait_and_that_do_not_compute_the_same_rows():
    words = [
        BENCHMARKS / "rollout_ways.py",
        "--images",
        "6",
        "--batch",
        "3",
        "--repeats",
        "1",
        "--printed",
    ]
    run = run_python(words)
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert facts["images_whose_steps_differ"] == 0
    assert facts["rows"]["continuous"] == facts["rows"]["waiting"]
    assert facts["calls"]["continuous"] <= facts["calls"]["waiting"]
