"""Summarize the results of an evaluation, and record where they come from."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tpdm.config.loader import recipe_hash
from tpdm.config.recipe import Recipe
from tpdm.evaluation.runner import EvalResult
from tpdm.evaluation.statistics import paired_bootstrap, quantile_of_difference, samples_of, spearman
from tpdm.evaluation.tasks import run_device

PACKAGES = ("tpdm", "torch", "diffusers", "transformers")


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Return versions, git revision, recipe hash and hardware of this run."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_revision": git_revision(Path(__file__)),
        "recipe_hash": recipe_hash(recipe),
        "hardware": hardware(recipe),
    }


def hardware(recipe: Recipe) -> str:
    """Describe the hardware: the GPU and dtype of the backbone (if any), CPU threads and CPU architecture."""
    device, cpu = run_device(recipe), f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    return f"{torch.cuda.get_device_name(device)}, {recipe.backbone.dtype}, {cpu}" if "cuda" in device else cpu


def git_revision(file: Path) -> str | None:
    """Return the commit of a source file, or None for an installed copy or without git.

    An installed copy can be inside another repository. The commit of that repository is not returned.
    """
    command = ["git", "rev-parse", "HEAD", f"HEAD:./{file.name}"]
    try:
        found = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.split()[0]


MEASURES = (("reward", "score"), ("accuracy", "accuracy"), ("residual", "residual"))

NOT_JUDGED = {"policy", "index", "prompt", "seed", "steps", "times", "score", "parts", "seconds", "objects"}

NOT_JUDGED |= {"outcomes", "odds"}

WORST = 0.01  # share of the images with the largest losses, which the mean hides


def summarize(
    results: Sequence[EvalResult], needed_B: np.ndarray, margin: float, grid: Sequence[int]
) -> dict[str, Any]:
    """Summarize the results of all policies.

    Args:
        results: Results of all policies on the same images. The first is the TPM.
        needed_B: Steps that the best fixed schedule needs, for the first B images.
        margin: Margin of the score that defines ``needed_B``.
        grid: Numbers of steps that were tried for ``needed_B``.

    Returns:
        ``rows``, ``images`` (their number), ``paired`` (TPM minus each other policy, [mean, low, high]),
        ``steps_by_objects`` (if the scorer counts objects), ``steps_vs_difficulty`` and ``difficulty`` (pairs of
        needed and used steps).
    """
    tpdm = results[0]
    steps_B = tpdm.column("steps")[: len(needed_B)]
    # The correlation is undefined if one of the two is constant.
    samples = samples_of([row["prompt"] for row in tpdm.rows])
    rho, low, high = spearman(needed_B, steps_B, samples=samples) or (None, None, None)
    return {
        "rows": [_row(r) for r in results],
        "images": len(tpdm.rows),
        "paired": {other.name: _paired(tpdm, other) for other in results[1:]},
        "steps_by_objects": _by_objects(tpdm, needed_B) if tpdm.has("objects") else {},
        "steps_vs_difficulty": {
            "correlation": rho,
            "low": low,
            "high": high,
            "margin": margin,
            "grid": list(grid),
        },
        "difficulty": [[int(d), int(s)] for d, s in zip(needed_B, steps_B, strict=True)],
    }


def point_summary(learned: EvalResult, baselines: Sequence[EvalResult]) -> dict[str, Any]:
    """Summarize one quality setting: the TPM, fixed schedules of as many steps, and their differences."""
    return {
        "row": _row(learned),
        "controls": [_row(c) for c in baselines],
        "paired": {c.name: _paired(learned, c) for c in baselines},
    }


def _row(result: EvalResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": result.name,
        "steps_mean": float(result.column("steps").mean()),
        "steps_sd": float(result.column("steps").std()),
        "reward_mean": float(result.column("score").mean()),
        "seconds_per_image": float(result.column("seconds").mean()),
    }
    return row | {label: float(result.column(key).mean()) for label, key in _measures(result)[1:]}


def _measures(result: EvalResult) -> list[tuple[str, str]]:
    """Return (label, key) of every measure: the reward first, and judges of the recipe last."""
    judges = [(key, key) for key in result.rows[0] if key not in NOT_JUDGED and key not in dict(MEASURES).values()]
    return [(label, key) for label, key in MEASURES if result.has(key)] + judges


def _paired(tpdm: EvalResult, other: EvalResult) -> dict[str, list[float]]:
    """Return [mean, low, high] of each difference, of the win rate, and of the loss of the worst images."""
    samples = samples_of([row["prompt"] for row in tpdm.rows])
    found = {
        label: list(paired_bootstrap(tpdm.column(key) - other.column(key), samples=samples))
        for label, key in _measures(tpdm)
    }
    score_BK, odds_BK = other.outcomes()
    gain_BK = tpdm.column("score")[:, None] - score_BK
    wins_B = (np.where(gain_BK == 0, 0.5, gain_BK > 0) * odds_BK).sum(axis=1)
    worst = quantile_of_difference(gain_BK.ravel(), WORST, samples=samples * gain_BK.shape[1], odds_B=odds_BK.ravel())
    return found | {"win_rate": list(paired_bootstrap(wins_B, samples=samples)), "worst": list(worst)}


def _by_objects(tpdm: EvalResult, needed_B: np.ndarray) -> dict[str, dict[str, float]]:
    steps_B, objects_B = (tpdm.column(key)[: len(needed_B)] for key in ("steps", "objects"))
    return {
        str(int(n)): {
            "mean": float(steps_B[objects_B == n].mean()),
            "sd": float(steps_B[objects_B == n].std()),
            "count": int((objects_B == n).sum()),
            "needed": float(needed_B[objects_B == n].mean()),
        }
        for n in sorted(set(objects_B))
    }
