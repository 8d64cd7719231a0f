"""Comparisons of trainings with baselines, image by image, and the facts that results share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.two_way import two_way_bootstrap
from tpdm.config.recipe import Recipe
from tpdm.config.renamed import present
from tpdm.evaluation.comparison import BaselineComparison
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.runner import EvalResult
from tpdm.evaluation.statistics import paired_bootstrap, quantile_of_difference
from tpdm.evaluation.summary import provenance
from tpdm.evaluation.tasks import fingerprint, learned_fingerprint, make_tasks
from tpdm.policies.pretrained import load_policy
from tpdm.training.objective import discounted_reward

MEASURES = {"reward": "score", "accuracy": "accuracy", "residual": "residual"}
BETTER = {"reward": 1, "accuracy": 1, "residual": -1}  # the sign of a difference that is a gain
WORST = 0.01

Rows = Sequence[Mapping[str, Any]]


def results_of(
    chosen: argparse.Namespace, recipe: Recipe, prompts: int, changes: Sequence[str], **found: Any
) -> dict[str, Any]:
    """The results of an experiment: what was found, with seeds, prompts, changes, hardware and versions."""
    return {"seeds": chosen.seeds, "prompts": prompts, "changes": list(changes), **found, **provenance(recipe)}


def comparison(
    recipe: Recipe, controls: Path, place: str, which: str = "best", seen: int = 0, shared: bool = True
) -> BaselineComparison:
    """A trained TPM with its baselines, on the test prompts of its recipe; what was evaluated is read from disk.

    Args:
        recipe: Its ``evaluation.tuned_baseline`` is the TPM that sees only the time, if there is one.
        controls: Folder of the baselines.
        place: Folder of the TPM's rows, in that of its run.
        which: "best" or "last".
        seen: Number of test prompts that are left out at the beginning.
        shared: Whether several trainings use the folder of the baselines at once.
    """
    tuning, test = make_tasks(recipe)
    test = replace(test, prompts=test.prompts[seen:], seeds=test.seeds[seen:])
    common, run, tuned = fingerprint(recipe, tuning, test), Path(recipe.output), recipe.evaluation.tuned_baseline
    store = Store(run / place, {**common, **learned_fingerprint(recipe, which)})
    policies = load_policy(run / which), load_policy(tuned) if tuned else None
    return BaselineComparison(test, tuning, *policies, store, Store(controls, common, shared=shared))


def reach(steps_PS: Sequence[Sequence[float]], what: str) -> str:
    """The range of mean steps from the first point to the last, over seeds, and on how many seeds steps always rise."""
    steps = np.asarray(steps_PS)
    times_S = steps[-1] / steps[0]
    rising = int((np.diff(steps, axis=0) > 0).all(axis=0).sum())
    return (
        f"Mean steps range from {steps[0].mean():.1f} to {steps[-1].mean():.1f}, a factor of {times_S.min():.1f} to "
        f"{times_S.max():.1f} on the seeds. Steps rise with {what} throughout on {rising} of {len(times_S)} seeds."
    )


def column(rows: Rows, key: str) -> np.ndarray:
    """One number per image, in the order of images."""
    return np.asarray([row[key] for row in sorted(rows, key=lambda row: row["index"])], dtype=np.float64)


def as_rows(columns: Mapping[str, Sequence[float]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """One dictionary per image, of columns."""
    images = zip(*(columns[key] for key in keys), strict=True)
    return [{"index": i, **dict(zip(keys, values, strict=True))} for i, values in enumerate(images)]


def difference(runs: Sequence[Rows], baselines: Sequence[Rows]) -> dict[str, Any]:
    """Trainings minus a baseline, image by image.

    Args:
        runs: Rows of each training.
        baselines: Rows of the baseline of each training; empty if it has none.

    Returns:
        ``of``, the number of trainings with a baseline. For every measure ``mean``, the interval over trainings and
        images, and ``seeds``, the interval of each training. For the reward also ``worst``: what the worst 1 % lose.
    """
    pairs = [(a, b) for a, b in zip(runs, baselines, strict=True) if b]
    found: dict[str, Any] = {"of": len(pairs)}
    for label, key in MEASURES.items():
        tables = [column(a, key) - column(b, key) for a, b in pairs]
        if not tables:
            continue
        found[label] = {"mean": interval(tables), "seeds": [paired_bootstrap(t) for t in tables]}
        if label == "reward":
            found["worst"] = worst_lost(pairs)
    return found


def apply_step_penalty(rows: Rows, gamma: float) -> np.ndarray:
    """The objective of the training, of every image: eq. (9), the reward with the price of its steps."""
    score_B, steps_B = (torch.from_numpy(column(rows, key)) for key in ("score", "steps"))
    return discounted_reward(score_B, steps_B, gamma).numpy()


def objective_difference(runs: Sequence[Rows], baselines: Sequence[Rows], gamma: float) -> tuple[float, float, float]:
    """Trainings minus a baseline in the objective of the training: the interval over trainings and images."""
    return interval(
        [apply_step_penalty(a, gamma) - apply_step_penalty(b, gamma) for a, b in zip(runs, baselines, strict=True)]
    )


def interval(tables: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """[mean, low, high] of differences over trainings and images; over images if there is one training."""
    return two_way_bootstrap(np.stack(tables)) if len(tables) > 1 else paired_bootstrap(tables[0])


def worst_lost(pairs: Sequence[tuple[Rows, Rows]]) -> tuple[float, float, float]:
    """What the worst 1 % of images lose, over all trainings. A mixture counts by the odds of its outcomes."""
    gains, odds = [], []
    for runs, baselines in pairs:
        score_BK, odds_BK = EvalResult(
            "baseline", [dict(r) for r in sorted(baselines, key=lambda row: row["index"])]
        ).outcomes()
        gains.append((column(runs, "score")[:, None] - score_BK).T)
        odds.append(odds_BK.T)
    # The bootstrap draws the numbers of one image, over trainings, together: they are neighbors.
    gain_NB, odds_NB = np.concatenate(gains), np.concatenate(odds)
    return quantile_of_difference(gain_NB.T.ravel(), WORST, samples=len(gain_NB), odds_B=odds_NB.T.ravel())


def origin(results: Mapping[str, Any]) -> str:
    """Seeds, prompts, changes, hardware and versions of some results, in one line."""
    changes = ", ".join(f"`{present_override(change)}`" for change in results["changes"]) or "none"
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        f"Training seeds {', '.join(map(str, results['seeds']))}; {results['prompts']} held-out prompts; "
        f"changes to the recipe: {changes}; {results['hardware']}; {versions}."
    )


def present_override(override: str) -> str:
    """An override as it is written today; results keep those that their runs were given."""
    key, _, value = override.partition("=")
    return "=".join(str(part) for part in present(key, value))
