"""Checkpoints: damaged ones, and resumed runs with another recipe or other prompts."""

import shutil
from pathlib import Path

import pytest

from tests.support.gaussian_problem import make_small_problem, prompts
from tests.support.interrupted import InterruptingReward, files, run
from tpdm.core.errors import TrainingError
from tpdm.core.io import read_metrics
from tpdm.training.checkpoint import load_checkpoint
from tpdm.training.ema import EMA
from tpdm.training.monitoring.logger import MetricsLog
from tpdm.training.policy_update import make_optimizer
from tpdm.training.run_identity import run_identity

FILES = ["policy.safetensors", "average.safetensors", "optimizer.safetensors", "state.json", "identity.json"]


def damage_file(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "one bit":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    else:
        path.write_bytes(data[: {"truncated": 40, "empty": 0}[damage]])


@pytest.mark.parametrize("name", [*FILES, "sha256.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "one bit"])
def test_a_damaged_checkpoint_is_logged_and_the_one_before_is_used(tmp_path, whole, caplog, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    damage_file(folder / "checkpoints" / "update-000010" / name, damage)
    run(folder)
    (logged,) = [record.getMessage() for record in caplog.records]
    assert "update-000010 is damaged (" in logged
    assert "\n" not in logged
    assert files(folder) == files(whole)


def test_a_run_with_only_damaged_checkpoints_does_not_restart(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        damage_file(checkpoint / "policy.safetensors", "one bit")
    before = files(folder)
    with pytest.raises(
        TrainingError, match=r"Every checkpoint in .* is damaged \(the newest: policy.*sha256.*Remove"
    ) as caught:
        run(folder)
    assert "\n" not in str(caught.value)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl": {"clip": 0.3}}, r"rl\.clip was 0\.2 and is 0\.3\. .*must have the same recipe"),
        ({"seed": 5}, r"seed was 0 and is 5"),
        ({"validation": {"samples_per_prompt": 2}}, r"validation\.samples_per_prompt was 1 and is 2"),
        ({"rl": {"updates": 20}}, r"rl\.updates was 10 and is 20"),  # linear decay
        (
            {"seed": 5, "rl": {"clip": 0.3, "epochs": 2}, "optimizer": {"lr": 0.1, "eps": 0.1}},
            r"seed.*optimizer\.lr.*optimizer\.eps.*2 more\.",
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


def test_paths_batch_sizes_and_intervals_may_change(tmp_path, whole):
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


def test_a_run_with_a_constant_rate_can_be_extended(tmp_path):
    constant = {"lr_schedule": "constant"}
    run(tmp_path / "long", optimizer=constant, rl={"updates": 10})
    run(tmp_path / "short", optimizer=constant, rl={"updates": 6})
    run(tmp_path / "short", optimizer=constant, rl={"updates": 10})
    long, short = files(tmp_path / "long"), files(tmp_path / "short")
    same = [n for n in long if n.startswith("last/") or n.endswith("000010/policy.safetensors")]
    assert len(same) == 3
    assert {n: long[n] for n in same} == {n: short[n] for n in same}


def test_the_optimizer_state_is_restored(tmp_path, whole):
    recipe, parts = make_small_problem(tmp_path)
    optimizer = make_optimizer(parts.policy, recipe.optimizer)
    average = EMA(parts.policy, 0.0)
    identity = run_identity(recipe, parts.train_prompts, parts.validation_prompts)
    state = load_checkpoint(whole / "checkpoints", parts.policy, average, optimizer, identity)
    assert state is not None
    assert state.update == 10
    values = optimizer.state_dict()["state"]
    assert len(values) == len(list(parts.policy.parameters()))
    assert all(v["step"] == 10 * recipe.rl.epochs for v in values.values())
    assert load_checkpoint(tmp_path / "none", parts.policy, average, optimizer, identity) is None


def test_a_damaged_line_of_metrics_raises_one_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"upd\n{"update": 2}\n')
    with pytest.raises(TrainingError, match=r"line 2 is damaged .* must be a JSON object. Remove that line"):
        MetricsLog(path, keep_up_to=1)
