"""The table and the picture of ``ablations``: variants compared with the first one of their axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.page import signed, table
from benchmarks.quality.comparison import apply_step_penalty, column, objective_difference, origin
from tpdm.core.io import write_atomically

Run = Mapping[str, Any]  # of one variant and seed; ``curve`` has a point for every validation
Axes = Mapping[str, Mapping[str, Sequence[str]]]  # changes to the recipe, of every variant of every axis


def reached(curve: Sequence[Run], objective: float) -> float:
    """Trajectories at which a curve first reaches an objective, linear between validations; inf if it never does."""
    for before, after in pairwise(curve):
        if before["objective"] >= objective:
            break
        if after["objective"] >= objective:
            share = (objective - before["objective"]) / (after["objective"] - before["objective"])
            return float(before["trajectories"] + share * (after["trajectories"] - before["trajectories"]))
    return float(curve[0]["trajectories"]) if curve[0]["objective"] >= objective else float("inf")


def settled(curve: Sequence[Run]) -> float:
    """The objective at the end: the mean of the last three validations, to reduce their noise."""
    return fmean(point["objective"] for point in curve[-3:])


def along(curve: Sequence[Run]) -> float:
    """The mean objective over the training, without its start: higher if the TPM learns faster."""
    return fmean(point["objective"] for point in curve[1:])


def mean_curve(runs: Sequence[Run]) -> list[dict[str, float]]:
    """Mean over the seeds of one variant."""
    return [
        {key: fmean(point[key] for point in points) for key in points[0]}
        for points in zip(*(r["curve"] for r in runs), strict=True)
    ]


def mean_and_sd(values: Sequence[float], form: str = ".4f") -> str:
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def line(axis: str, name: str, runs: Sequence[Run], base: Sequence[Run]) -> list[str]:
    """One line of the table: a variant, compared with the first one of its axis on the same seeds."""
    by_seed = {r["seed"]: r for r in base}
    pairs = [(r, by_seed[r["seed"]]) for r in runs if r["seed"] in by_seed]
    tests = [fmean(float(column(r["rows"], key).mean()) for r in runs) for key in ("steps", "score")]
    cells = [axis, name, str(len(runs)), f"{tests[0]:.1f}", f"{tests[1]:.4f}"]
    cells.append(mean_and_sd([float(apply_step_penalty(r["rows"], base[0]["gamma"]).mean()) for r in runs]))
    if runs is base or not pairs:
        return [*cells, "", "", needed(runs, base), ""]
    mine, others = ([pair[i]["rows"] for pair in pairs] for i in (0, 1))
    minus = signed(objective_difference(mine, others, base[0]["gamma"]))
    learnt = mean_and_sd([along(a["curve"]) - along(b["curve"]) for a, b in pairs], "+.4f")
    return [*cells, minus, learnt, needed(runs, base), needed(base, runs)]


def needed(runs: Sequence[Run], others: Sequence[Run]) -> str:
    """Trajectories after which the mean curve of some runs reaches the end of others; "" if that is below its start."""
    goal, curve = settled(mean_curve(others)), mean_curve(runs)
    if goal <= curve[0]["objective"]:
        return ""
    first = reached(curve, goal)
    return "never" if np.isinf(first) else f"{first:.0f}"


def by_axis(runs: Sequence[Run], axes: Axes) -> dict[str, dict[str, list[Run]]]:
    """Runs by axis and variant, in the order of ``axes``; without those that have none."""
    by = {a: {n: [r for r in runs if (r["axis"], r["variant"]) == (a, n)] for n in names} for a, names in axes.items()}
    return {a: {n: rs for n, rs in names.items() if rs} for a, names in by.items() if any(names.values())}


def section(runs: Sequence[Run], axes: Axes) -> str:
    """The section of the page."""
    head = "axis | variant | seeds | steps | reward | objective | minus the first | over the training"
    head += " | trajectories to the first's | the first's to this"
    each = [
        (a, n, rs, next(iter(names.values()))) for a, names in by_axis(runs, axes).items() for n, rs in names.items()
    ]
    lines = [line(*words) for words in each]
    seeds = sorted({r["seed"] for r in runs})
    picture = "![Learning curves of every axis](images/ablations.png)"
    facts = {**runs[-1], "seeds": seeds, "changes": runs[0]["changes"], "prompts": len(runs[0]["rows"])}
    return "\n\n".join([picture, table(head, lines), origin(facts)])


def draw_curves(runs: Sequence[Run], axes: Axes, path: Path) -> None:
    """One panel for every axis: thin lines are seeds, thick ones their means."""
    panels = by_axis(runs, axes)
    rows = (len(panels) + 2) // 3
    figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
    for place, (axis, names) in enumerate(panels.items(), start=1):
        panel = figure.add_subplot(rows, 3, place, title=axis, xlabel="trajectories", ylabel="objective")
        for color, (name, rs) in enumerate(names.items()):
            for curve, width, label in [*((r["curve"], 0.5, None) for r in rs), (mean_curve(rs), 2, name)]:
                x, y = ([p[key] for p in curve] for key in ("trajectories", "objective"))
                panel.plot(x, y, color=f"C{color}", linewidth=width, label=label)
        panel.legend(fontsize=7)
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=100))
