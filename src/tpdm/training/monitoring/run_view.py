"""The status of a run from its folder: starting, running, finished or quiet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpdm.config.loader import load_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.errors import TrainingError
from tpdm.core.io import expand, read_metrics
from tpdm.training.monitoring.warnings import TrainingWarning, find_warnings

PACE_OVER = 10  # updates over which the pace is averaged
QUIET_AFTER = 4.0  # a run is quiet after this many times the pace without a row, plus QUIET_GRACE
QUIET_GRACE = 60.0  # seconds, for a validation between two rows


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
        folder: Folder of the run.
        recipe: Recipe of the run.
        rows: Rows of metrics.jsonl.
        idle: Seconds since the newest row. None before the first.
    """

    folder: Path
    recipe: Recipe
    rows: Sequence[Mapping[str, Any]]
    idle: float | None

    @property
    def train(self) -> list[Mapping[str, Any]]:
        """Rows of updates."""
        return [row for row in self.rows if row["kind"] == "train"]

    @property
    def validations(self) -> list[Mapping[str, Any]]:
        """Rows of validations."""
        return [row for row in self.rows if row["kind"] == "validation"]

    @property
    def warnings(self) -> list[TrainingWarning]:
        """All warnings of the run."""
        return find_warnings(self.rows, self.recipe)

    @property
    def updates(self) -> int:
        """Updates done."""
        return int(self.train[-1]["update"]) if self.train else 0

    @property
    def finished(self) -> bool:
        """Whether the last update is done and validated."""
        seen = self.validations[-1]["update"] if self.validations else 0
        return self.updates >= self.recipe.rl.updates and seen >= self.recipe.rl.updates

    @property
    def pace(self) -> float | None:
        """Seconds per update over the latest updates, without interruptions. None before there are two."""
        latest = self.train[-PACE_OVER - 1 :]
        if len(latest) < 2:
            return None
        return float(latest[-1]["seconds"] - latest[0]["seconds"]) / (latest[-1]["update"] - latest[0]["update"])

    @property
    def remaining(self) -> float | None:
        """Estimated seconds of the remaining updates, without validations. None while there is no pace."""
        return None if self.pace is None else self.pace * (self.recipe.rl.updates - self.updates)

    @property
    def state(self) -> str:
        """``finished``, ``running``, ``starting``, or ``quiet`` if there was no row for long."""
        if self.finished:
            return "finished"
        if self.idle is None:
            return "starting"
        return "running" if self.idle < QUIET_AFTER * (self.pace or 0.0) + QUIET_GRACE else "quiet"


def read_run(folder: Path, now: float) -> RunStatus:
    """Reads the files of a run.

    Args:
        folder: ``output`` of its recipe.
        now: Current time in seconds since the epoch.

    Raises:
        TrainingError: The folder contains no run, or its metrics are damaged.
        ConfigError: Its recipe is damaged.
    """
    folder = Path(expand(folder))
    if not (folder / "recipe.yaml").is_file():
        raise TrainingError(f"{folder} contains no run. It must be the output folder of tpdm train. Correct the path.")
    metrics = folder / "metrics.jsonl"
    rows = read_metrics(metrics)
    idle = now - metrics.stat().st_mtime if rows else None
    return RunStatus(folder, load_recipe(folder / "recipe.yaml"), rows, idle)
