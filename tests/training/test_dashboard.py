"""``tpdm watch`` on running, interrupted and finished runs."""

import io
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from tests.support.interrupted import InterruptingReward, run
from tests.support.processes import Process
from tpdm.cli import app
from tpdm.core.errors import TrainingError
from tpdm.core.formatting import duration
from tpdm.core.io import read_metrics
from tpdm.training.monitoring.dashboard import BLOCKS, sparkline, watch
from tpdm.training.monitoring.run_view import read_run

ROOT = Path(__file__).parents[2]


def shown(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    watch(folder, once=True, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_finished_run(whole):
    view = read_run(whole, time.time())
    assert (view.state, view.updates) == ("finished", 10)
    text = shown(whole)
    last = [row for row in read_metrics(whole / "metrics.jsonl") if row["kind"] == "validation"][-1]
    assert re.search(r"state +finished", text)
    assert "10 of 10" in text
    assert f"steps {last['steps_mean']:.1f}, reward {last['score_mean']:.4f}" in text
    assert "to go" not in text


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(folder, InterruptingReward(8))  # validation 0, updates 1 to 3, validation 3, updates 4 to 6
    return folder


def test_an_interrupted_run_becomes_quiet_after_a_while(interrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    view = read_run(folder, time.time())
    assert (view.state, view.updates) == ("running", 6)
    assert view.remaining is not None
    assert "about" in shown(folder)
    an_hour_ago = time.time() - 3600
    os.utime(folder / "metrics.jsonl", (an_hour_ago, an_hour_ago))
    assert read_run(folder, time.time()).state == "quiet"
    assert "no row for 1 h 0 min" in shown(folder)


def test_a_starting_run(whole, tmp_path):
    shutil.copy(whole / "recipe.yaml", tmp_path)
    view = read_run(tmp_path, time.time())
    assert (view.state, view.pace, view.remaining) == ("starting", None, None)
    assert "0 of 10" in shown(tmp_path)


def test_the_pace_is_averaged_over_the_latest_updates(whole):
    view = read_run(whole, time.time())
    clock = [10.0 * n for n in range(1, 11)] + [100.0 + 2.0 * n for n in range(1, 11)]
    rows = [{"kind": "train", "update": n, "seconds": seconds} for n, seconds in enumerate(clock, start=1)]
    assert type(view)(view.folder, view.recipe, rows, 0.0).pace == pytest.approx(2.0)


def test_a_folder_without_a_run_raises_one_error(tmp_path):
    with pytest.raises(TrainingError, match="contains no run"):
        read_run(tmp_path, 0.0)
    answer = CliRunner().invoke(app, ["watch", str(tmp_path), "--once"])
    assert answer.exit_code == 2


CHILD = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.support.gaussian_problem import DistanceReward, make_small_problem
from tpdm.training.loop import train_loop

class Slow(DistanceReward):
    def score(self, images_B3HW, prompts):
        time.sleep(0.05)
        return super().score(images_B3HW, prompts)

train_loop(*make_small_problem(Path(sys.argv[1]), Slow()), Path(sys.argv[1]))
"""


def test_a_run_of_another_process_is_watched_to_its_end(tmp_path):
    child = Process(["-c", CHILD, tmp_path])
    try:
        while not read_metrics(tmp_path / "metrics.jsonl"):
            assert child.poll() is None
            time.sleep(0.02)
        assert CliRunner().invoke(app, ["watch", str(tmp_path), "--once"]).exit_code == 0
        console = Console(file=io.StringIO(), width=100, force_terminal=True)
        watch(tmp_path, every=0.05, console=console)
    finally:
        child.kill()
        child.wait()
    assert "10 of 10" in console.file.getvalue()  # type: ignore[attr-defined]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 60))
def test_a_sparkline_fits_its_width_and_shows_the_extremes(values, width):
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BLOCKS)
    if len(values) <= width and max(values) > min(values):
        assert line[values.index(max(values))] == BLOCKS[-1]
        assert line[values.index(min(values))] == BLOCKS[0]


def test_durations():
    assert [duration(s) for s in (4.4, 75, 7500)] == ["4 s", "1 min 15 s", "2 h 5 min"]
