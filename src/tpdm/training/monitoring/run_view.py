"""A run as its folder shows it: of this process or another, running, finished or interrupted."""

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

PACE_OVER = 10  # updates that the pace is taken over
QUIET_AFTER = 4.0  # times the usual time of an update, plus what follows, and nobody seems to train
QUIET_GRACE = 60.0  # seconds: a validation may lie between two rows


@dataclass(frozen=True)
class RunStatus:
    """What can be known of a run from outside.

    Attributes:
        folder: of the run.
        recipe: as it was started.
        rows: of metrics.jsonl.
        idle: seconds since the newest row; None before the first.
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
        """What the run has been warned of."""
        return find_warnings(self.rows, self.recipe)

    @property
    def updates(self) -> int:
        """Updates done."""
        return int(self.train[-1]["update"]) if self.train else 0

    @property
    def finished(self) -> bool:
        """Whether the last update was made and validated."""
        seen = self.validations[-1]["update"] if self.validations else 0
        return self.updates >= self.recipe.rl.updates and seen >= self.recipe.rl.updates

    @property
    def pace(self) -> float | None:
        """Seconds an update, of the latest ones; None before there are two. Clocks go on over interruptions."""
        latest = self.train[-PACE_OVER - 1 :]
        if len(latest) < 2:
            return None
        return float(latest[-1]["seconds"] - latest[0]["seconds"]) / (latest[-1]["update"] - latest[0]["update"])

    @property
    def remaining(self) -> float | None:
        """Seconds of the updates to come, without validations; None where the pace is not known."""
        return None if self.pace is None else self.pace * (self.recipe.rl.updates - self.updates)

    @property
    def state(self) -> str:
        """``finished``, ``running``, ``starting``, or ``quiet`` where no row has come for long."""
        if self.finished:
            return "finished"
        if self.idle is None:
            return "starting"
        return "running" if self.idle < QUIET_AFTER * (self.pace or 0.0) + QUIET_GRACE else "quiet"


def read_run(folder: Path, now: float) -> RunStatus:
    """Reads what a run has written so far.

    Args:
        folder: ``output`` of its recipe.
        now: seconds since the epoch.

    Raises:
        TrainingError: there is no run, or its metrics are damaged.
        ConfigError: its recipe is.
    """
    folder = Path(expand(folder))
    if not (folder / "recipe.yaml").is_file():
        raise TrainingError(f"got {folder}, which holds no run, expected the output folder of tpdm train; correct it")
    metrics = folder / "metrics.jsonl"
    rows = read_metrics(metrics)
    idle = now - metrics.stat().st_mtime if rows else None
    return RunStatus(folder, load_recipe(folder / "recipe.yaml"), rows, idle)
