"""Quality against steps: one TPM for all gammas, compared with the best fixed schedules, over training seeds.

For every seed the recipe tinyworld-quality.yaml trains a TPM. Further TPMs see only the time: they are the best fixed
schedules that the same training finds at every number of steps. --tuned says how many; seeds take them in turn.
`tpdm eval` compares both with hand-made grids at each quality. Intervals are over training seeds and prompts at once.
What is trained and evaluated is not done again. With --seeds 0 --print a process may take each seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.comparison import MEASURES, Rows, column, difference
from benchmarks.quality.experiments import STATIC
from benchmarks.quality.frontier_page import draw as draw
from benchmarks.quality.frontier_page import part as part
from benchmarks.quality.trainings import conditioned_recipe, fixed_recipe, trained
from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics
from tpdm.evaluation.evaluate import evaluate
from tpdm.evaluation.summary import provenance

OWN = (  # at the TPM's own gamma: the TPM without a part of what it does
    "mean schedule of tpdm",
    "shuffled schedules of tpdm",
    "its numbers of steps dealt at random, best grid",
    "error control",
)


def run_seed(seed: int, tuned: int, folder: Path, changes: list[str], kept: bool) -> Recipe:
    """Trains and evaluates one seed, unless that was done before; returns its recipe."""
    fixed = trained(fixed_recipe(folder, tuned, changes), kept)
    trained(conditioned_recipe(folder, seed, changes), kept)
    compared = f"evaluation.tuned_baseline={fixed.output}/best", f"evaluation.baseline_cache={folder / 'controls'}"
    judged = conditioned_recipe(folder, seed, [*changes, *compared])
    if not (Path(judged.output) / "eval" / "summary.json").exists():
        evaluate(judged)
    return judged


def rows_of(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows at every quality, rows at the TPM's own gamma, and the summary of one evaluation."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return read_metrics(folder / "points.jsonl"), read_metrics(folder / "results.jsonl"), summary


def named(rows: Rows, policy: str) -> Rows:
    return [row for row in rows if row["policy"] == policy]


def at_cap(tpdm: list[Rows], static: list[Rows], cap: int) -> dict[str, Any]:
    """The mean difference from 28 steps in two parts: images whose last step is forced by the cap, and the others.

    Returns:
        ``share``: share of images at the cap, of each seed. ``capped`` and ``others``: parts of the mean, over seeds.
    """
    ends = [column(rows, "steps") >= cap for rows in tpdm]
    minus = [column(a, "score") - column(b, "score") for a, b in zip(tpdm, static, strict=True)]
    return {
        "cap": cap,
        "share": [float(end.mean()) for end in ends],
        "capped": float(np.mean([(m * end).mean() for m, end in zip(minus, ends, strict=True)])),
        "others": float(np.mean([(m * ~end).mean() for m, end in zip(minus, ends, strict=True)])),
    }


def point(quality: float, along: list[Rows], own: list[Rows], cap: int) -> dict[str, Any]:
    """One quality: steps of every seed, and the TPM minus each baseline."""
    at = [[row for row in rows if row["quality"] == quality] for rows in along]
    tpdm = [[row for row in rows if row["policy"].startswith("tpdm")] for rows in at]
    names = sorted({row["policy"] for rows in at for row in rows} - {tpdm[0][0]["policy"]})
    minus = {name: difference(tpdm, [named(rows, name) for rows in at]) for name in names}
    static = [named(rows, STATIC) for rows in own]
    minus[STATIC] = difference(tpdm, static)
    return {
        "quality": quality,
        "steps": [float(column(rows, "steps").mean()) for rows in tpdm],
        "means": {label: float(np.mean([column(r, key).mean() for r in tpdm])) for label, key in MEASURES.items()},
        "controls": {
            name: float(np.mean([column(named(r, name), "score").mean() for r in at if named(r, name)]))
            for name in names
        },
        "minus": minus,
        "cap": at_cap(tpdm, static, cap),
    }


def collect(recipes: list[Recipe], chosen: argparse.Namespace, tuned: list[int]) -> dict[str, Any]:
    """The results: points by quality, what looking adds at the TPM's own gamma, the oracle's share."""
    found = [rows_of(Path(recipe.output) / "eval") for recipe in recipes]
    along, own, summaries = ([f[i] for f in found] for i in range(3))
    tpdm = [named(rows, "tpdm") for rows in own]
    names = [name for name in OWN if named(own[0], name)]
    static = [column(named(rows, STATIC), "score").mean() for rows in own]
    cap = recipes[0].sampling.max_steps
    return {
        "seeds": chosen.seeds,
        "tuned_seeds": tuned,
        "prompts": len(tpdm[0]),
        "changes": chosen.set,
        "static": float(np.mean(static)),
        "points": [point(q, along, own, cap) for q in sorted({row["quality"] for row in along[0]})],
        "own": {
            "steps": [float(column(rows, "steps").mean()) for rows in tpdm],
            "minus": {name: difference(tpdm, [named(rows, name) for rows in own]) for name in names},
        },
        "oracle": [{k: v for k, v in s["oracle"].items() if k != "curve"} for s in summaries if s["oracle"]],
        **{k: v for k, v in summaries[0].items() if k in provenance(recipes[0])},
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tuned", type=int, default=5, help="number of trainings that see only the time")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    tuned = [seed % chosen.tuned for seed in chosen.seeds]
    pairs = zip(chosen.seeds, tuned, strict=True)
    recipes = [run_seed(seed, fixed, chosen.runs, chosen.set, chosen.keep) for seed, fixed in pairs]
    return collect(recipes, chosen, sorted(set(tuned)))
