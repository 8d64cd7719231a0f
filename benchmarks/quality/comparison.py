"""Comparisons of trainings with baselines, image by image, and the facts that results share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tpdm.config.recipe import Recipe
from tpdm.evaluation.runner import EvalResult
from tpdm.evaluation.statistics import paired_bootstrap, quantile_of_difference, two_way_bootstrap
from tpdm.evaluation.summary import provenance
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


def column(rows: Rows, key: str) -> np.ndarray:
    """One number per image, in the order of images."""
    return np.asarray([row[key] for row in sorted(rows, key=lambda row: row["index"])], dtype=np.float64)


def difference(mine: Sequence[Rows], others: Sequence[Rows]) -> dict[str, Any]:
    """What several trainings have beyond a control, image by image.

    Args:
        mine: rows of each training.
        others: of the control beside each; empty where it has none.

    Returns:
        For every measure ``mean``, [mean, low, high] over trainings and images (over images alone where there is one),
        ``seeds`` (the same of each) and ``of``, how many; for the reward ``worst`` too: what the worst 1 % lose.
    """
    pairs = [(a, b) for a, b in zip(mine, others, strict=True) if b]
    found: dict[str, Any] = {"of": len(pairs)}
    for label, key in MEASURES.items():
        tables = [column(a, key) - column(b, key) for a, b in pairs]
        if not tables:
            continue
        single = [paired_bootstrap(t) for t in tables]
        found[label] = {"mean": two_way_bootstrap(np.stack(tables)) if len(tables) > 1 else single[0], "seeds": single}
        if label == "reward":
            found["worst"] = worst_lost(pairs)
    return found


def apply_step_penalty(rows: Rows, gamma: float) -> np.ndarray:
    """What is trained for, of every image: eq. (9), the reward with the price of its steps."""
    score_B, steps_B = (torch.from_numpy(column(rows, key)) for key in ("score", "steps"))
    return discounted_reward(score_B, steps_B, gamma).numpy()


def objective_difference(mine: Sequence[Rows], others: Sequence[Rows], gamma: float) -> tuple[float, float, float]:
    """[mean, low, high] over trainings and images of what was trained for."""
    minus = [apply_step_penalty(a, gamma) - apply_step_penalty(b, gamma) for a, b in zip(mine, others, strict=True)]
    return two_way_bootstrap(np.stack(minus)) if len(minus) > 1 else paired_bootstrap(minus[0])


def worst_lost(pairs: Sequence[tuple[Rows, Rows]]) -> tuple[float, float, float]:
    """What the worst 1 % of images lose, over all trainings; a mixture counts by the odds of what it may come to."""
    gains, odds = [], []
    for mine, others in pairs:
        score_BK, odds_BK = EvalResult(
            "control", [dict(r) for r in sorted(others, key=lambda row: row["index"])]
        ).outcomes()
        gains.append((column(mine, "score")[:, None] - score_BK).T)
        odds.append(odds_BK.T)
    # Numbers of one image, over trainings, side by side: they are drawn together.
    gain_NB, odds_NB = np.concatenate(gains), np.concatenate(odds)
    return quantile_of_difference(gain_NB.T.ravel(), WORST, samples=len(gain_NB), odds_B=odds_NB.T.ravel())


def origin(results: Mapping[str, Any]) -> str:
    """One line on where the numbers come from."""
    changes = ", ".join(f"`{change}`" for change in results["changes"]) or "none"
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        f"Training seeds {', '.join(map(str, results['seeds']))}; {results['prompts']} held-out prompts; "
        f"changes to the recipe: {changes}; {results['hardware']}; {versions}."
    )
