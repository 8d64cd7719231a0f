"""Where the numbers of an evaluation come from."""

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
    """Versions, git revision, recipe and hardware of this run."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_revision": git_revision(Path(__file__)),
        "recipe_hash": recipe_hash(recipe),
        "hardware": hardware(recipe),
    }


def hardware(recipe: Recipe) -> str:
    """What the recipe runs on here: a GPU with the dtype of the backbone, CPU threads, and the machine."""
    device, cpu = run_device(recipe), f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    return f"{torch.cuda.get_device_name(device)}, {recipe.backbone.dtype}, {cpu}" if "cuda" in device else cpu


def git_revision(file: Path) -> str | None:
    """The commit that a source file is checked out from; None for an installed copy, or where there is no git.

    An installed copy may lie below somebody else's checkout, whose commit says nothing of it.
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

WORST = 0.01  # share of the images whose loss the mean hides


def summarize(
    results: Sequence[EvalResult], needed_B: np.ndarray, margin: float, grid: Sequence[int]
) -> dict[str, Any]:
    """Rows, paired differences and the relation of steps to difficulty; ``results[0]`` is the TPM.

    Args:
        results: of all policies on the same images.
        needed_B: steps that the best fixed schedule needs for each image, or for the first so many.
        margin, grid: how that was measured.

    Returns:
        ``rows``, ``images`` (how many), ``paired`` (TPM minus each other policy, [mean, low, high]),
        ``steps_by_objects`` (where the judge counts objects), ``steps_vs_difficulty`` and
        ``difficulty`` (pairs of needed and taken steps).
    """
    tpdm = results[0]
    steps_B = tpdm.column("steps")[: len(needed_B)]
    # Undefined where one of the two does not vary at all.
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
    """One point of a dial: what the TPM did there, and its differences to fixed schedules of as many steps."""
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
    """(label, key) of everything that was measured of the images: the reward first, judges of the recipe last."""
    judges = [(key, key) for key in result.rows[0] if key not in NOT_JUDGED and key not in dict(MEASURES).values()]
    return [(label, key) for label, key in MEASURES if result.has(key)] + judges


def _paired(tpdm: EvalResult, other: EvalResult) -> dict[str, list[float]]:
    """[mean, low, high] of each measure; and of the reward how often it is higher, and what the worst-served lose."""
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
