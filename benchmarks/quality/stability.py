"""A training of twice the updates: is the last TPM as good as the best, and is any image ruined by a jump?

The validations of a run give the objective of its last and its best TPM. Held-out prompts show what the worst images of
the last TPM lose against 28 steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import table
from benchmarks.quality.comparison import column, difference, origin, results_of
from benchmarks.quality.experiments import EULER, EXPERIMENTS
from benchmarks.quality.second_order import judged
from benchmarks.quality.trainings import train_seeds
from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics

EXPERIMENT = EXPERIMENTS["stability"]
ALLOWED = 0.02  # share of the best validation's objective


def validations(recipe: Recipe) -> list[dict[str, float]]:
    """Update, objective and mean steps of every validation of a run, from the untrained TPM on."""
    rows = read_metrics(Path(recipe.output) / "metrics.jsonl")
    return [
        {"update": r["update"], "objective": r["objective_mean"], "steps": r["steps_mean"]}
        for r in rows
        if r["kind"] == "validation"
    ]


def best_and_lost(curve: Sequence[dict[str, float]]) -> tuple[float, float]:
    """The best objective of a run's validations, and by what share of it the last one is lower."""
    best = max(point["objective"] for point in curve)
    return best, (best - curve[-1]["objective"]) / best


def part(facts: dict[str, Any]) -> str:
    """The section of the page."""
    lines, stays = [], 0
    for seed, curve, worst in zip(facts["seeds"], facts["validations"], facts["worst"], strict=True):
        best, lost = best_and_lost(curve)
        stays += lost <= ALLOWED
        place = [str(seed), f"{best:.4f}", f"{curve[-1]['objective']:.4f}", f"{100 * lost:.2f} %"]
        lines.append([*place, f"{curve[-1]['steps']:.1f}", f"{worst[0]:+.3f}", f"{worst[1]:+.3f}"])
    head = "seed | best objective | last objective | less by | steps | worst 1 % | worst image"
    within = f"The last objective is within {100 * ALLOWED:g} % of the best on {stays} of {len(lines)} seeds"
    intro = f"{within}, after {facts['updates']} updates. Worst images: reward of the last TPM minus 28 steps."
    return "\n\n".join([intro, table(head, lines), origin(facts)])


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    recipes = train_seeds(EXPERIMENT, chosen)
    rows = [judged(recipe, chosen.runs / "controls", "last") for recipe in recipes]
    losses = [column(r["tpdm"], "score") - column(r[EULER], "score") for r in rows]
    return results_of(
        chosen,
        recipes[0],
        len(rows[0]["tpdm"]),
        [*EXPERIMENT.overrides, *chosen.set],
        updates=recipes[0].rl.updates,
        validations=[validations(recipe) for recipe in recipes],
        worst=[[float(np.quantile(loss, 0.01)), float(loss.min())] for loss in losses],
        minus={name: difference([r["tpdm"] for r in rows], [r[name] for r in rows]) for name in EXPERIMENT.baselines},
    )
