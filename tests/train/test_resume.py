"""Interrupted and resumed is the same as uninterrupted, bit by bit; what cannot be resumed says why."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.gaussian_problem import DistanceReward, make_small_problem, prompts
from tpdm.train.checkpoint import load_checkpoint
from tpdm.train.identity import run_identity
from tpdm.train.log import MetricsLog, read_metrics
from tpdm.train.loop import train_loop
from tpdm.train.update import make_optimizer
from tpdm.types import TrainingError

CLOCKS = ("seconds", "learn_seconds")
ROOT = Path(__file__).parents[2]


class InterruptingReward(DistanceReward):
    def __init__(self, calls: int) -> None:
        self.calls = calls

    def score(self, images_B3HW, prompts):
        if self.calls == 0:
            raise KeyboardInterrupt  # an Exception would become a RewardError
        self.calls -= 1
        return super().score(images_B3HW, prompts)


def run(folder: Path, judge=None, **sections):
    recipe, parts = make_small_problem(folder, judge, **sections)
    return train_loop(recipe, parts, folder)


def files(folder: Path) -> dict[str, str]:
    """Every file of a run by its digest; clocks are taken out, wherever they are written."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(path)]
            data = json.dumps(rows).encode()
        if path.name == "state.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k not in CLOCKS}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_an_uninterrupted_run_leaves_what_it_says(whole):
    checkpoints = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert checkpoints == ["update-000008", "update-000010"]  # every 4 and the last, two kept
    assert {p.name for p in whole.iterdir()} == {"best", "last", "checkpoints", "metrics.jsonl"}
    kinds = [(row["kind"], row["update"]) for row in read_metrics(whole / "metrics.jsonl")]
    assert [update for kind, update in kinds if kind == "validation"] == [0, 3, 6, 9, 10]


# Calls of the reward: validation 0, updates 1 to 3, validation 3, updates 4 to 6, validation 6 ...
@pytest.mark.parametrize("calls", range(15))
def test_interrupted_at_any_call_and_resumed_is_uninterrupted(tmp_path, whole, calls):
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
    learnt = [row for row in read_metrics(tmp_path / "cut" / "metrics.jsonl") if row["kind"] == "train"]
    assert learnt[-1]["kl_to_initial"] > 0


def test_interrupted_again_and_again(tmp_path, whole):
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
from tpdm.train.loop import train_loop
train_loop(*make_small_problem(Path(sys.argv[1])), Path(sys.argv[1]))
"""


def test_killed_and_resumed_is_uninterrupted(tmp_path, whole):
    """SIGKILL at a random moment, three times: even between the two renames of a save."""
    moment = random.Random(os.getpid())
    killed = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
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


def test_a_finished_run_is_left_alone(tmp_path, whole):
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


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "state.json", "identity.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_checkpoint_is_one_sentence_and_the_one_before_goes_on(tmp_path, whole, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / "checkpoints" / "update-000010" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 40 if damage == "truncated" else 0])
    with pytest.raises(TrainingError, match=r"got .*update-000010, which cannot.*update-000008") as caught:
        run(folder)
    assert "\n" not in str(caught.value)
    if (name, damage) == ("policy.safetensors", "truncated"):
        shutil.rmtree(path.parent)
        run(folder)
        assert files(folder) == files(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl": {"clip": 0.3}}, r"\(rl\.clip was 0\.2 and is 0\.3\), expected the same"),
        ({"seed": 5}, r"seed was 0 and is 5"),
        ({"validation": {"samples_per_prompt": 2}}, r"validation\.samples_per_prompt was 1 and is 2"),
        ({"rl": {"updates": 20}}, r"rl\.updates was 10 and is 20"),  # linear decay
        (
            {"seed": 5, "rl": {"clip": 0.3, "epochs": 2}, "optimizer": {"lr": 0.1, "eps": 0.1}},
            r"seed.*optimizer\.lr.*optimizer\.eps.*2 more\)",
        ),
    ],
)
def test_another_recipe_is_refused(tmp_path, whole, changes, message):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(TrainingError, match=message):
        run(tmp_path / "run", **changes)
    assert files(tmp_path / "run") == files(whole)


def test_other_prompts_are_refused():
    recipe, _ = make_small_problem(Path())
    first = run_identity(recipe, prompts(4), prompts(2, 10))
    assert first == run_identity(recipe, prompts(4), prompts(2, 10))
    other = run_identity(recipe, prompts(4, 1), prompts(2, 10))
    assert [key for key in first if first[key] != other[key]] == ["training prompts"]


def test_places_batches_and_intervals_may_change(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "old", InterruptingReward(8))
    (tmp_path / "old").rename(tmp_path / "new")
    state = run(
        tmp_path / "new",
        name="other",
        output="elsewhere",
        rl={"rollout_batch": 7, "update_batch": 50},
        checkpoint={"every": 1, "keep": 5},
        validation={"every": 2},
    )
    assert state.update == 10
    rows = [row for row in read_metrics(tmp_path / "new" / "metrics.jsonl") if row["kind"] == "train"]
    expected = [row for row in read_metrics(whole / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["update"] for row in rows] == list(range(1, 11))
    assert [r["score_mean"] for r in rows] == pytest.approx([r["score_mean"] for r in expected], abs=0.01)


def test_a_run_with_a_constant_rate_may_be_made_longer(tmp_path):
    constant = {"lr_schedule": "constant"}
    run(tmp_path / "long", optimizer=constant, rl={"updates": 10})
    run(tmp_path / "short", optimizer=constant, rl={"updates": 6})
    run(tmp_path / "short", optimizer=constant, rl={"updates": 10})
    long, short = files(tmp_path / "long"), files(tmp_path / "short")
    same = [n for n in long if n.startswith("last/") or n.endswith("000010/policy.safetensors")]
    assert len(same) == 3
    assert {n: long[n] for n in same} == {n: short[n] for n in same}


def test_optimizer_state_comes_back(tmp_path, whole):
    recipe, parts = make_small_problem(tmp_path)
    optimizer = make_optimizer(parts.policy, recipe.optimizer)
    identity = run_identity(recipe, parts.train_prompts, parts.validation_prompts)
    state = load_checkpoint(whole / "checkpoints", parts.policy, optimizer, identity)
    assert state is not None
    assert state.update == 10
    values = optimizer.state_dict()["state"]
    assert len(values) == len(list(parts.policy.parameters()))
    assert all(v["step"] == 10 * recipe.rl.epochs for v in values.values())
    assert load_checkpoint(tmp_path / "none", parts.policy, optimizer, identity) is None


def test_a_damaged_line_of_metrics_is_one_sentence(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"upd\n{"update": 2}\n')
    with pytest.raises(TrainingError, match=r"line 2 damaged .* expected a JSON object; remove that line"):
        MetricsLog(path, keep_up_to=1)
