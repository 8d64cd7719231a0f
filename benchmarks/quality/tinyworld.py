"""What steps are worth in tinyworld: reward, accuracy and residual of the default schedule at several numbers of steps.

The results contain paired differences to 28 steps, and the share of objects of three-object captions that are right.
The images of the grid go to docs/images/tinyworld.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.labeled_grid import labeled_grid
from benchmarks.page import table
from tpdm.cli.demo import demo_recipe
from tpdm.core.io import to_uint8
from tpdm.evaluation.baselines import default_schedule
from tpdm.evaluation.runner import EvalTask, evaluate_policy
from tpdm.evaluation.statistics import paired_bootstrap
from tpdm.evaluation.summary import provenance
from tpdm.evaluation.tasks import make_tasks
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults
from tpdm.tinyworld.grammar import describe, sample_scene
from tpdm.tinyworld.scene_reader import matched_objects, read_scenes

PICTURE = Path("docs/images/tinyworld.png")
STEPS = (28, 20, 14, 10, 8, 6, 4, 3)
MEASURES = ("score", "accuracy", "residual")
THREE_OBJECT_CAPTIONS = 200


def steps_and_quality(task: EvalTask) -> list[dict[str, Any]]:
    results = {n: evaluate_policy(f"static-{n}", default_schedule(task.pipe, n, task.arguments), task) for n in STEPS}
    longest = results[max(STEPS)]
    return [
        {
            "steps": n,
            **{m: float(r.column(m).mean()) for m in MEASURES},
            "minus_28": {m: list(paired_bootstrap(r.column(m) - longest.column(m))) for m in MEASURES},
        }
        for n, r in results.items()
    ]


def three_objects(pipe: Any, picture: Path | None) -> float:
    """Share of right objects at 28 steps, of three-object captions that name three of four attributes."""
    rng = np.random.default_rng(3)
    asked = [describe(sample_scene(rng, 3), rng, keep=0.75) for _ in range(THREE_OBJECT_CAPTIONS)]
    captions = [a.caption() for a in asked]
    fixed = attach(pipe, default_schedule(pipe, 28, call_defaults("tinyworld")), defaults=call_defaults("tinyworld"))
    images = to_uint8(fixed(captions, seeds=list(range(len(captions))), output_type="pt").images)
    right = [matched_objects(a.objects, r.scene.objects) for a, r in zip(asked, read_scenes(images), strict=True)]
    if picture:
        labeled_grid(images[:15], captions[:15], picture)
    return sum(right) / sum(len(a.objects) for a in asked)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    recipe = demo_recipe(chosen.runs, 0)
    _, task = make_tasks(recipe)
    return {
        "prompts": len(task.prompts),
        "rows": steps_and_quality(task),
        "three_objects": three_objects(task.pipe, None if chosen.print else PICTURE),
        **provenance(recipe),
    }


def part(facts: dict[str, Any]) -> str:
    head = "steps | reward | accuracy | residual | minus 28 steps: reward | accuracy | residual"
    lines = []
    for row in facts["rows"]:
        longest = row["steps"] == max(STEPS)
        minus = ["" if longest else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["minus_28"][m]) for m in MEASURES]
        lines.append([str(row["steps"]), *(f"{row[m]:.4f}" for m in MEASURES), *minus])
    return (
        f"{table(head, lines, narrow=True)}\n\n"
        f"{facts['prompts']} held-out prompts, default schedule, paired differences with 95 % bootstrap intervals."
        f" Objects of three-object captions right at 28 steps: {facts['three_objects']:.1%}"
        f" ({THREE_OBJECT_CAPTIONS} prompts)."
    )
