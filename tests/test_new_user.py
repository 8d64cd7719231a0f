"""The way of docs/how-to/train.md from its first line to its last, as someone goes it who has never been there."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tpdm
from tests.support.processes import Process
from tpdm.cli import app
from tpdm.core.io import read_metrics

ROOT = Path(__file__).parents[1]
SMALL = [
    "name=first",
    "rl.updates=12",
    "rl.prompts_per_update=2",
    "rl.samples_per_prompt=2",
    "validation.every=6",
    "validation.prompts=4",
    "validation.num_images_logged=4",
    "checkpoint.every=1",
    "prompts.limit=400",
]
TRAIN = ["train", "recipes/tinyworld.yaml", *SMALL]
# Tests that were started in the background may have Ctrl-C ignored, and children inherit that.
LISTENING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from tpdm.cli import main; main()"


def tpdm_command(*words):
    """In this process: the same code without the seconds that loading takes."""
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return answer.output


def train_until(folder, update):
    """Starts training and presses Ctrl-C once so many updates are written; returns what it said."""
    child = Process(["-c", LISTENING, *TRAIN], folder, small=True)
    metrics = folder / "runs" / "first" / "metrics.jsonl"
    while child.poll() is None and not any(row["update"] >= update for row in read_metrics(metrics)):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=120)[1]
    return child.returncode, said


@pytest.mark.slow
def test_interrupted_twice_watched_resumed_evaluated_published_and_loaded(tmp_path, monkeypatch, small_tinyworld):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "src" / "tpdm" / "config" / "recipes")
    run = Path("runs/first")
    for update in (1, 3):
        code, said = train_until(tmp_path, update)
        assert (code, "Run the same command again to resume from the last checkpoint" in said) == (130, True), said
        done = max(row["update"] for row in read_metrics(run / "metrics.jsonl"))
        assert update <= done < 12
        assert f"{done} of 12" in tpdm_command("watch", run, "--once")
    tpdm_command(*TRAIN)
    frame = tpdm_command("watch", run, "--once")
    assert "finished" in frame
    assert "12 of 12" in frame
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["update"] for row in rows] == list(range(1, 13))
    assert {p.name for p in (run / "pictures").glob("*.png")} == {f"update-{n:06d}.png" for n in (0, 6, 12)}

    # 960 images by each of a dozen policies take minutes.
    few = ("prompts=4", "tuning_prompts=2", "step_grid=[2,3]", "step_grid_prompts=2")
    tpdm_command("eval", *TRAIN[1:], *(f"evaluation.{change}" for change in few))
    assert (run / "eval" / "report.html").is_file()

    tpdm_command("push", run / "best", "--folder", "published")
    card = Path("published/README.md").read_text(encoding="utf-8")
    assert "## Evaluation" in card
    assert "| static-28 |" in card
    said = json.loads(tpdm_command("inspect", "published", "--json"))
    assert said["sound"]
    assert said["notes"] == []
    assert said["config"]["trained"]["updates"] == 12
    fast = tpdm.attach(tpdm.load_pipeline("tinyworld"), "published")
    out = fast("object and ring", seeds=[0])
    assert len(out.images) == len(out.steps) == 1


def test_the_guide_leads_through_all_of_it():
    guide = (ROOT / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
    places = [guide.index(f"tpdm {command} ") for command in ("train", "watch", "eval", "inspect", "push", "sample")]
    assert places == sorted(places)
    assert re.search(r"Ctrl-C", guide)
