"""The differences that frontier finds, on other prompts, three times as many. Nothing is trained anew.

The TPMs and fixed schedules of frontier are compared at the same five qualities, on held-out prompts that come after
those of frontier. Nothing was chosen by these prompts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality.comparison import Rows, column, comparison, difference, origin, results_of
from benchmarks.quality.experiments import EXPERIMENTS
from benchmarks.quality.frontier_page import along, judges, verdicts
from benchmarks.quality.trainings import conditioned_recipe, fixed_recipe, trained
from tpdm.config.recipe import Recipe
from tpdm.evaluation.runner import EvalResult

EXPERIMENT = EXPERIMENTS["other_prompts"]
LIMIT = 60_000  # prompts that the source is asked for, so that enough are held out; training sees the first 20,000


def judged(recipe: Recipe, seen: int, controls: Path) -> list[dict[str, EvalResult]]:
    """For every quality: the TPM, the best hand-made grid, and the tuned schedule if it reaches as many steps."""
    match = comparison(recipe, controls, "eval-others", seen=seen)
    found = []
    for i in range(recipe.evaluation.gamma_points):
        quality = i / (recipe.evaluation.gamma_points - 1)
        tpdm = match.learned(f"tpdm, quality {quality:g}", match.gamma(quality))
        steps = float(tpdm.column("steps").mean())
        others = [match.grid_at(steps), match.tuned_at(steps)]
        found.append({"tpdm": tpdm, **{other.name: other for other in others if other is not None}})
    return found


def point(quality: float, seeds: list[dict[str, EvalResult]]) -> dict[str, Any]:
    """One quality, over seeds."""
    tpdm = [seed["tpdm"].rows for seed in seeds]

    def baseline(name: str) -> list[Rows]:
        return [seed[name].rows if name in seed else [] for seed in seeds]

    return {
        "quality": quality,
        "steps": [float(column(rows, "steps").mean()) for rows in tpdm],
        "minus": {name: difference(tpdm, baseline(name)) for name in EXPERIMENT.baselines},
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seen", type=int, default=1024, help="number of prompts that frontier has shown")
    parser.add_argument("--prompts", type=int, default=3072)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    recipes = []
    for seed in chosen.seeds:
        tpm = trained(conditioned_recipe(chosen.runs, seed, chosen.set))
        fixed = trained(fixed_recipe(chosen.runs, seed, chosen.set))
        wanted = replace(tpm.evaluation, prompts=chosen.seen + chosen.prompts, tuned_baseline=f"{fixed.output}/best")
        recipes.append(replace(tpm, evaluation=wanted, prompts=replace(tpm.prompts, limit=LIMIT)))
    found = [judged(recipe, chosen.seen, chosen.runs / "controls-others") for recipe in recipes]
    count = recipes[0].evaluation.gamma_points
    points = [point(i / (count - 1), [seed[i] for seed in found]) for i in range(count)]
    return results_of(chosen, recipes[0], len(found[0][0]["tpdm"].rows), chosen.set, points=points)


def part(facts: dict[str, Any]) -> str:
    return "\n\n".join([verdicts(facts), judges(facts), along(facts), origin(facts)])
