"""A second-order solver under learned times: the quality of 28 Euler steps at how many evaluations?

Every seed trains a TPM for a narrow range of gammas with DPM++ 2M. It is asked for seven steps on average. It is
compared with the pipeline's own 28 Euler steps, and with the best hand-made grid of as many steps and the same solver.
A single gamma does not determine the number of steps: with .9967 five seeds ended at 5.7 to 7.5.
Another solver: --set sampling.solver=ab2 --out runs/ab2.json --runs runs/ab2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import signed, table
from benchmarks.quality.comparison import column, comparison, difference, origin, results_of
from benchmarks.quality.experiments import EULER, EXPERIMENTS, GRID
from benchmarks.quality.trainings import train_seeds
from tpdm.config.recipe import Recipe
from tpdm.policies.conditioned import quality_for

EXPERIMENT = EXPERIMENTS["second_order"]
LIMIT = 7.0  # a quarter of 28


def judged(recipe: Recipe, controls: Path, which: str = "best") -> dict[str, list[dict[str, Any]]]:
    """Rows of the best or last TPM, of 28 Euler steps and of the best grid; what was evaluated is not made again.

    A gamma-conditioned TPM is asked for ``LIMIT`` steps on average.
    """
    match = comparison(recipe, controls, f"eval-{which}", which)
    conditioned = match.policy.shape.gamma_range is not None
    learned = match.learned("tpdm", match.gamma(quality_for(match.policy, LIMIT)) if conditioned else None)
    grid = next(r for r in match.baselines_at_nfe(float(learned.column("steps").mean())) if r.name == GRID)
    return {"tpdm": learned.rows, EULER: match.default_first_order(28).rows, GRID: grid.rows}


def within_limit(steps: Sequence[float]) -> int:
    """On how many seeds the mean number of steps is at most ``LIMIT``."""
    return sum(s <= LIMIT for s in steps)


def part(facts: dict[str, Any]) -> str:
    """The section of the page."""
    lines = [
        [f"minus {name}", *(signed(minus[label]["mean"]) for label in ("reward", "accuracy", "residual"))]
        for name, minus in (("28 Euler steps, default", facts["minus"][EULER]), (GRID, facts["minus"][GRID]))
    ]
    steps = facts["steps"]
    intro = (
        f"Solver `{facts['solver']}`, gammas {facts['gammas'][0]:g} to {facts['gammas'][1]:g}. The TPM is asked for "
        f"{LIMIT:g} steps on average. Mean steps on the seeds: "
        f"{', '.join(f'{s:.2f}' for s in steps)}; {within_limit(steps)} of {len(steps)} within {LIMIT:g}. "
        f"Worst 1 % of images against 28 Euler steps: {facts['minus'][EULER]['worst'][0]:+.3f} of the reward."
    )
    each = ", ".join(signed(i) for i in facts["minus"][EULER]["reward"]["seeds"])
    return "\n\n".join(
        [
            intro,
            table("tpdm | reward | accuracy | residual", lines),
            f"Reward minus 28 Euler steps, each seed: {each}.",
            origin(facts),
        ]
    )


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    recipes = train_seeds(EXPERIMENT, chosen)
    rows = [judged(recipe, chosen.runs / "controls") for recipe in recipes]
    tpdm = [r["tpdm"] for r in rows]
    return results_of(
        chosen,
        recipes[0],
        len(tpdm[0]),
        [*EXPERIMENT.overrides, *chosen.set],
        solver=recipes[0].sampling.solver,
        gammas=recipes[0].reward.gamma_range,
        steps=[float(np.mean(column(r, "steps"))) for r in tpdm],
        minus={name: difference(tpdm, [r[name] for r in rows]) for name in EXPERIMENT.baselines},
    )
