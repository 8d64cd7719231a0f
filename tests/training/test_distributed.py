"""One, two and three processes train the same TPM with the same metrics."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.support.interrupted import CLOCKS, files
from tests.support.processes import ROOT, finish, run_python, start
from tests.support.shared_runs import CASES, run_case
from tpdm.cli import app
from tpdm.core.io import load_tensors, read_metrics
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext, init_distributed

# What rounding leaves after ten updates: gradients are summed in another order, matrices have other numbers of rows.
WEIGHTS = {"rtol": 1e-5, "atol": 1e-5}
NUMBERS = {"rel": 1e-5, "abs": 2e-5}
# On a pipeline the features differ already: a matrix product of other rows rounds otherwise. Adam makes a step of the
# learning rate of it where a gradient is next to nothing, so that single weights may part; all together they may not.
PARTED_WEIGHTS, PARTED_WEIGHT = 5e-5, 1e-3  # mean of |difference|, and the largest: two updates at 5e-4
NUMBERS_OF_PIPELINE = {"rel": 5e-3, "abs": 1e-4}
EXACT = ("update", "lr", "steps_mean", "steps_sd", "steps_min", "steps_max")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name in CASES:
        run_case(name, folder / name)
    return folder


@pytest.fixture(scope="module", params=[2, 3])
def shared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    for code, output in finish(start(request.param, ["-m", "tests.support.shared_runs", str(folder)])):
        assert code == 0, output
    return folder


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").iterdir())[-1]


def same_weights(got: torch.Tensor, wanted: torch.Tensor, key: str) -> None:
    torch.testing.assert_close(got, wanted, **WEIGHTS, msg=lambda m: f"{key}: {m}")


def same_weights_of_pipeline(got: torch.Tensor, wanted: torch.Tensor, key: str) -> None:
    apart = (got.float() - wanted.float()).abs()
    assert float(apart.mean()) <= PARTED_WEIGHTS, key
    assert float(apart.max()) <= PARTED_WEIGHT, key


def assert_same_run(folder: Path, expected: Path, check: Callable = same_weights, numbers: dict = NUMBERS) -> None:
    assert newest(folder).name == newest(expected).name
    for name in ("policy", "average", "optimizer"):
        got, wanted = (load_tensors(newest(f) / f"{name}.safetensors")[0] for f in (folder, expected))
        assert got.keys() == wanted.keys()
        for key in wanted:
            check(got[key], wanted[key], f"{name}: {key}")
    rows, wanted_rows = read_metrics(folder / "metrics.jsonl"), read_metrics(expected / "metrics.jsonl")
    assert [(r["kind"], r["update"]) for r in rows] == [(r["kind"], r["update"]) for r in wanted_rows]
    for got, wanted in zip(rows, wanted_rows, strict=True):
        assert got["steps_histogram"] == wanted["steps_histogram"]
        for one, other in zip(got.get("gamma_points", []), wanted.get("gamma_points", []), strict=True):
            assert one == pytest.approx(other, **numbers)
        for key in wanted.keys() - {*CLOCKS, "kind", "steps_histogram", "gamma_points"}:
            expected_value = wanted[key] if key in EXACT else pytest.approx(wanted[key], **numbers)
            assert got[key] == expected_value, (got["kind"], got["update"], key)


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_gives_the_same_run(alone, shared, case):
    assert_same_run(shared / case, alone / case)


def test_only_the_main_process_writes(alone, shared):
    assert files(shared / "plain").keys() == files(alone / "plain").keys()
    assert not (shared / "not-here").exists()


def test_several_processes_resume_to_the_same_files(shared):
    assert files(shared / "cut") == files(shared / "plain")


def test_one_process_resumes_a_run_of_several(alone, shared):
    assert newest(shared / "handed-over").name == "update-000004"
    run_case("uneven", shared / "handed-over")
    assert_same_run(shared / "handed-over", alone / "uneven")


def test_scores_of_the_first_update_are_equal_to_the_bit(alone, shared):
    first = [read_metrics(f / "plain" / "metrics.jsonl")[1] for f in (alone, shared)]
    for key in ("score_mean", "score_sd", "objective_mean", "objective_sd_within_group"):
        assert first[0][key] == first[1][key]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_all_items_and_differ_by_at_most_one(count, size):
    parts = [range(count)[DistributedContext(rank, size).part(count)] for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shares_contain_whole_groups_if_the_processes_divide_the_prompts():
    assert [DistributedContext(rank, 4).part(8 * 5) for rank in range(4)] == [
        slice(10 * r, 10 * r + 10) for r in range(4)
    ]


def test_a_single_process_needs_no_group():
    context, tensors = DistributedContext(), {"a": torch.ones(2)}
    assert context.all_gather_object({"x": 0.1}) == [{"x": 0.1}]
    assert context.broadcast_object(json.loads("[1]")) == [1]
    assert context.broadcast_tensors(tensors) == tensors


SMALL = ["rl.updates=2", "rl.prompts_per_update=3", "rl.samples_per_prompt=3", "validation.prompts=4"]
SMALL += ["prompts.limit=400", "rl.rollout_batch=4", "backbone.device=cpu"]


def train_tinyworld(folder: Path, launcher: list[str]) -> None:
    command = [
        *launcher,
        "-m",
        "tests.support.small_command",
        "train",
        str(ROOT / "src/tpdm/config/recipes/tinyworld.yaml"),
    ]
    run = run_python([*command, f"output={folder}", *SMALL])
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Trained: see") == 1


@pytest.mark.slow
def test_torchrun_on_a_real_pipeline(tmp_path):
    train_tinyworld(tmp_path / "one", [])
    train_tinyworld(tmp_path / "two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    assert_same_run(tmp_path / "two", tmp_path / "one", same_weights_of_pipeline, NUMBERS_OF_PIPELINE)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


def test_accelerate_launch_with_a_single_process_logs_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # with --num_processes 2 on CPUs, and no rank or size
    with caplog.at_level(logging.WARNING), init_distributed("cpu") as context:
        assert context is SINGLE_PROCESS
    assert "started one" in caplog.text
    assert "torchrun" in caplog.text


def test_commands_that_share_no_work_refuse_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = CliRunner().invoke(app, ["doctor"])
    assert refused.exit_code == 2
    assert "WORLD_SIZE is 2 for tpdm doctor." in refused.output
