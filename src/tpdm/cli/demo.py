"""``tpdm demo``: train a TPM on the embedded model, compare it with fixed schedules, write a report."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

from tpdm.config.loader import load_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.io import expand, write_json
from tpdm.evaluation.evaluate import evaluate
from tpdm.evaluation.report.build import write_report
from tpdm.training.train import train


def demo_recipe(out: Path, seed: int) -> Recipe:
    """The shipped tinyworld recipe with ``out/train`` as its run folder."""
    path = Path(str(resources.files("tpdm.config") / "recipes" / "tinyworld.yaml"))
    return replace(load_recipe(path), output=str(out / "train"), seed=seed)


def run_demo(out: Path = Path("runs/demo"), seed: int = 0) -> Path:
    """Trains (or resumes), evaluates on held-out prompts, and writes ``report.html`` and ``summary.json``.

    Args:
        out: Folder of the run.
        seed: Seed of the training. Test prompts and their noise do not depend on it.

    Returns:
        Path of the report.
    """
    began, out = time.monotonic(), expand(out)
    recipe = demo_recipe(out, seed)
    train(recipe)
    summary = evaluate(recipe, out)
    summary["total_seconds"] = round(time.monotonic() - began, 1)
    summary["command"] = f"tpdm demo --out {out} --seed {seed}"
    write_json(out / "summary.json", summary)
    write_report(out, f"tpdm on {recipe.backbone.name_or_path}")  # again, with the total time
    for row in summary["rows"]:
        print("{name:38s} steps {steps_mean:5.2f}  reward {reward_mean:.4f}  accuracy {accuracy:.3f}".format(**row))
    return out / "report.html"
