"""Trackers get the fields of metrics.jsonl, each explained, also after an interruption."""

import importlib
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.gaussian_problem import DistanceReward, make_small_problem
from tests.support.interrupted import InterruptingReward
from tests.training.test_metrics import documented
from tpdm.core.errors import ConfigError
from tpdm.core.io import read_metrics
from tpdm.rewards.composite import CompositeReward, RewardPart
from tpdm.training.loop import train_loop
from tpdm.training.monitoring.trackers import IMAGE_SHEETS, NOT_CURVES, check_packages, curves, open_trackers

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


class RecordingTracker:
    """A tracker that keeps its rows and images."""

    def __init__(self):
        self.begun, self.rows, self.sheets = [], [], []

    def begin(self, update):
        self.begun.append(update)

    def row(self, row):
        self.rows.append(dict(row))

    def image_sheet(self, update, path):
        self.sheets.append((update, path))


def test_trackers_get_every_row_once_also_after_an_interruption(tmp_path):
    first = RecordingTracker()
    recipe, parts = make_small_problem(tmp_path, InterruptingReward(8))
    with pytest.raises(KeyboardInterrupt):
        train_loop(recipe, replace(parts, listeners=[first]), tmp_path)
    recipe, parts = make_small_problem(tmp_path)
    again = RecordingTracker()
    train_loop(recipe, replace(parts, listeners=[again]), tmp_path)
    assert (first.begun, again.begun) == ([0], [4])
    rows = [row for row in first.rows if row["update"] <= 4] + again.rows
    assert rows == read_metrics(tmp_path / "metrics.jsonl")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Every name of a run with parts and judges."""
    folder = tmp_path_factory.mktemp("names")
    reward = CompositeReward((RewardPart("distance", DistanceReward(), 1.0),))
    recipe, parts = make_small_problem(folder, reward, rl={"updates": 2})
    train_loop(recipe, replace(parts, judges={"eye": DistanceReward()}), folder)
    return {name for row in read_metrics(folder / "metrics.jsonl") for name, _ in curves(row)}


def test_every_curve_is_explained_and_the_reverse(names):
    both, train, composite, _, judged = documented()
    fields = {"train": both | train | composite, "validation": both | composite | judged}
    assert {tuple(name.split("/")[:2]) for name in names} == {
        (kind, field) for kind, known in fields.items() for field in known - NOT_CURVES
    }
    assert {name for name in names if name.count("/") > 1} == {
        f"{kind}/parts/distance/{what}" for kind in fields for what in ("mean", "sd")
    } | {f"validation/judges/eye/{what}" for what in ("mean", "sd")}


def test_the_document_names_the_image_sheets():
    section = DOCUMENT.read_text(encoding="utf-8").split("## Trackers")[1]
    assert re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE) == [IMAGE_SHEETS]


def run(folder, tracker, reward=None, **sections):
    recipe, parts = make_small_problem(folder, reward, trackers=[tracker], tracker_project="tests", **sections)
    with open_trackers(recipe, folder) as listeners:
        train_loop(recipe, replace(parts, listeners=listeners), folder)
        import torch

        from tpdm.training.monitoring.sample_sheets import write_image_sheet

        sheet = write_image_sheet(
            folder / "pictures", 10, torch.rand(2, 3, 8, 8), ["a", "b"], [1, 2], [[1, 0]] * 2, [0, 1]
        )
        listeners[0].image_sheet(10, sheet)
    return recipe


def test_tensorboard_contains_each_point_of_an_interrupted_run_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "tensorboard", InterruptingReward(8))
    run(tmp_path, "tensorboard")
    seen = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0})
    seen.Reload()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert set(seen.Tags()["scalars"]) == {name for row in rows for name, _ in curves(row)}
    for name in ("train/score_mean", "validation/steps_mean"):
        kind, field = name.split("/")
        points = [(event.step, event.value) for event in seen.Scalars(name)]
        assert points == [(row["update"], pytest.approx(row[field], rel=1e-6)) for row in rows if row["kind"] == kind]
    assert [event.step for event in seen.Images(IMAGE_SHEETS)] == [10]


def usable(package):
    """Optional packages bring servers and clients of their own: where one cannot be imported, it is not asked."""
    try:
        importlib.import_module(package)
    except Exception as error:
        pytest.skip(f"{package} cannot be imported here: {type(error).__name__}: {error}")


def content(paths):
    return b"".join(path.read_bytes() for path in paths)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of wandb's own dependencies
def test_wandb_writes_into_the_folder_of_the_run(tmp_path, monkeypatch):
    usable("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    run(tmp_path, "wandb", rl={"updates": 2})
    wandb.teardown()  # its own process writes the file, and closes it when it ends: here, or at the end of Python
    identifier = (tmp_path / "tracker-id").read_text(encoding="utf-8")
    # Offline, older versions of accelerate start the run again with its configuration: two files.
    written = [*(tmp_path / "wandb").glob(f"offline-run-*-{identifier}/run-{identifier}.wandb")]
    patience = time.monotonic() + 60
    while b"validation/steps_mean" not in (data := content(written)) and time.monotonic() < patience:
        time.sleep(0.1)
    assert b"train/score_mean" in data
    assert b"validation/steps_mean" in data


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of trackio's own dependencies
def test_trackio_contains_the_curves(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    usable("trackio")
    run(tmp_path / "run", "trackio", rl={"updates": 2})
    kept = content(path for path in (tmp_path / "trackio").rglob("*") if path.is_file())
    assert b"train/score_mean" in kept


def test_a_missing_package_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(
        "tpdm.training.monitoring.trackers.find_spec", lambda name: None if name == "wandb" else object()
    )
    check_packages(["tensorboard"])
    check_packages([])
    with pytest.raises(
        ConfigError, match=r"the package wandb is not installed.* pip install 'tpdm\[track\]'"
    ) as caught:
        check_packages(["tensorboard", "wandb"])
    assert "\n" not in str(caught.value)


def test_a_run_without_trackers_starts_none(tmp_path):
    recipe, _ = make_small_problem(tmp_path)
    with open_trackers(recipe, tmp_path) as listeners:
        assert list(listeners) == []
    assert not (tmp_path / "tracker-id").exists()


def test_trackers_may_change_and_get_plain_values(tmp_path):
    from tpdm.training.monitoring.trackers import _plain
    from tpdm.training.run_identity import run_identity

    plain, parts = make_small_problem(tmp_path)
    tracked, _ = make_small_problem(
        tmp_path, trackers=["tensorboard"], validation={"judges": ["pickscore"], "num_images_logged": 3}
    )
    prompts = parts.train_prompts, parts.validation_prompts
    assert run_identity(plain, *prompts) == run_identity(tracked, *prompts)
    values = _plain({"a": {"b": None, "c": ("x",)}, "d": True, "e": 2.5})
    assert values == {"a.b": "null", "a.c": '["x"]', "d": True, "e": 2.5}
    assert json.dumps(values)
    assert sys.getsizeof(values)
