"""``tpdm watch``: the status of a run in a terminal, refreshed until the run is finished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tpdm.core.formatting import duration
from tpdm.training.monitoring.run_view import RunStatus, read_run

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40
SHOWN_WARNINGS = 3  # the latest
COLORS = {"finished": "green", "running": "cyan", "starting": "cyan", "quiet": "yellow"}


def watch(folder: Path, every: float = 2.0, once: bool = False, console: Console | None = None) -> None:
    """Shows the status of a run until it is finished.

    Args:
        folder: ``output`` of the recipe.
        every: Seconds between two frames. Default: 2.
        once: Whether to show one frame and return. Default: False.
        console: Console to print on. Default: the terminal.

    Raises:
        TrainingError: The folder contains no run, or its metrics are damaged.
    """
    console = console or Console()
    view = read_run(folder, time.time())
    if once:
        console.print(frame(view))
        return
    with Live(frame(view), console=console, auto_refresh=False) as live:
        while not view.finished:
            time.sleep(every)
            view = read_run(folder, time.time())
            live.update(frame(view), refresh=True)


def frame(view: RunStatus) -> RenderableType:
    """One frame with the status of a run."""
    recipe = view.recipe
    grid = Table.grid(padding=(0, 2))
    grid.add_row("", ProgressBar(recipe.rl.updates, view.updates, width=SPARK_WIDTH))
    grid.add_row("state", Text(_state(view), style=COLORS[view.state]))
    grid.add_row("update", f"{view.updates} of {recipe.rl.updates}{_clock(view)}")
    for words, key, form in (
        ("reward", "score_mean", "{:.4f}"),
        ("objective", "objective_mean", "{:.4f}"),
        ("steps", "steps_mean", "{:.1f}"),
        ("entropy", "entropy", "{:.2f}"),
    ):
        values = [float(row[key]) for row in view.train]
        if values:
            grid.add_row(words, f"{sparkline(values, SPARK_WIDTH)}  {form.format(values[-1])}")
    if view.validations:
        grid.add_row("validation", _validation(view.validations))
    warned = [Text(f"update {w.update}: {w.message}", style="yellow") for w in view.warnings[-SHOWN_WARNINGS:]]
    return Panel(Group(grid, *warned), title=f"{recipe.name}  ({view.folder})", title_align="left", width=88)


def _state(view: RunStatus) -> str:
    if view.state != "quiet":
        return view.state
    return (
        f"no row for {duration(view.idle or 0)}: interrupted or slow. The same tpdm train resumes from the last "
        "checkpoint."
    )


def _clock(view: RunStatus) -> str:
    elapsed = f", {duration(float(view.train[-1]['seconds']))} so far" if view.train else ""
    if view.finished or view.remaining is None:
        return elapsed
    return f"{elapsed}, about {duration(view.remaining)} to go"


def _validation(rows: Sequence[Mapping[str, Any]]) -> str:
    first, last = rows[0], rows[-1]
    line = f"update {last['update']}: steps {last['steps_mean']:.1f}, reward {last['score_mean']:.4f}"
    if last["update"] == first["update"]:
        return f"{line} (untrained)"
    return f"{line} (untrained: {first['steps_mean']:.1f}, {first['score_mean']:.4f})"


def sparkline(values: Sequence[float], width: int) -> str:
    """A line of block characters, one per value.

    Args:
        values: Values, at least one. If there are more than ``width``, neighbors are averaged.
        width: Largest number of characters, >= 1.

    Example:
        >>> sparkline([1.0, 2.0, 3.0], width=10)
        '▁▅█'
    """
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[len(BLOCKS) // 2] * count
    return "".join(BLOCKS[round((mean - low) / (high - low) * (len(BLOCKS) - 1))] for mean in means)
