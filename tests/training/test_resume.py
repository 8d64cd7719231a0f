"""An interrupted and resumed run equals an uninterrupted run to the bit."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support.interrupted import InterruptingReward, files, run
from tests.support.processes import Process
from tpdm.core.io import read_metrics

ROOT = Path(__file__).parents[2]


def test_a_run_writes_the_documented_files(whole):
    checkpoints = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert checkpoints == ["update-000008", "update-000010"]  # every 4 and the last, two kept
    assert {p.name for p in whole.iterdir()} == {"best", "last", "checkpoints", "metrics.jsonl", "recipe.yaml"}
    kinds = [(row["kind"], row["update"]) for row in read_metrics(whole / "metrics.jsonl")]
    assert [update for kind, update in kinds if kind == "validation"] == [0, 3, 6, 9, 10]


# Calls of the reward: validation 0, updates 1 to 3, validation 3, updates 4 to 6, validation 6 ...
@pytest.mark.parametrize("calls", range(15))
def test_a_run_interrupted_at_any_call_ends_with_the_same_files(tmp_path, whole, calls):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, InterruptingReward(calls))
    run(tmp_path)
    assert files(tmp_path) == files(whole)


def test_the_reference_of_the_kl_term_stays_the_initial_policy(tmp_path):
    pulled = {"kl_weight": 0.1, "entropy_weight": 0.01, "ratio": "decision", "noise": "independent"}
    run(tmp_path / "whole", rl=pulled)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", InterruptingReward(11), rl=pulled)
    run(tmp_path / "cut", rl=pulled)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    updates = [row for row in read_metrics(tmp_path / "cut" / "metrics.jsonl") if row["kind"] == "train"]
    assert updates[-1]["kl_to_initial"] > 0


def test_a_run_interrupted_several_times_ends_with_the_same_files(tmp_path, whole):
    for calls in (2, 9, 3, 4, 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, InterruptingReward(calls))
    run(tmp_path)
    assert files(tmp_path) == files(whole)


CHILD = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.support.gaussian_problem import make_small_problem
from tpdm.training.loop import train_loop
train_loop(*make_small_problem(Path(sys.argv[1])), Path(sys.argv[1]))
"""


def test_a_killed_run_ends_with_the_same_files(tmp_path, whole):
    """SIGKILL at a random moment, three times: even between the two renames of a save."""
    moment = random.Random(os.getpid())
    killed = 0
    for _ in range(3):
        child = Process(["-c", CHILD, tmp_path])
        rows = len(read_metrics(tmp_path / "metrics.jsonl"))
        while child.poll() is None and len(read_metrics(tmp_path / "metrics.jsonl")) == rows:
            time.sleep(0.002)
        time.sleep(moment.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed
    run(tmp_path)
    left_by_kills = {name for name in files(tmp_path) if name.split("/")[0].startswith(".")}
    assert {k: v for k, v in files(tmp_path).items() if k not in left_by_kills} == files(whole)


def test_a_finished_run_is_unchanged(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "copy")
    before = files(tmp_path / "copy")
    state = run(tmp_path / "copy", InterruptingReward(0))
    assert state.update == 10
    assert files(tmp_path / "copy") == before


def test_half_written_checkpoints_are_ignored_and_removed(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, InterruptingReward(8))
    leftover = tmp_path / "checkpoints" / ".writing-abc"
    leftover.mkdir()
    (leftover / "policy.safetensors").write_bytes(b"half")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    run(tmp_path)
    assert files(tmp_path) == files(whole)
