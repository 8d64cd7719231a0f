"""Does a TPM stay good when it is trained for twice as long, and is any image ruined by a jump? On tinyworld.

    python benchmarks/stability.py                five seeds: trains, judges, writes docs/results and docs/frontier.md
    python benchmarks/stability.py --seeds 0 --only     one seed, and nothing is written: a process may take each

Every seed trains by recipes/tinyworld.yaml for twice its number of updates. The validations of a run say whether the
last TPM is still as good as the best one; held-out prompts say what the last one's worst images lose beside 28 steps.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiment import RESULTS, column, difference, keep, options, origin, recipe_of, table, trained, write_part
from second_order import EULER, judged
from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics, write_json
from tpdm.evaluation.summary import provenance

SETTINGS = ("rl.updates=280",)
ALLOWED = 0.02  # share of the best validation's objective


def validations(recipe: Recipe) -> list[dict[str, float]]:
    """What a run said of itself on held-out prompts, from the untrained TPM on."""
    rows = read_metrics(Path(recipe.output) / "metrics.jsonl")
    return [
        {"update": r["update"], "objective": r["objective_mean"], "steps": r["steps_mean"]}
        for r in rows
        if r["kind"] == "validation"
    ]


def part(facts: dict[str, Any]) -> str:
    """The page's part."""
    lines, stays = [], 0
    for seed, curve, worst in zip(facts["seeds"], facts["validations"], facts["worst"], strict=True):
        best = max(point["objective"] for point in curve)
        lost = (best - curve[-1]["objective"]) / best
        stays += lost <= ALLOWED
        place = [str(seed), f"{best:.4f}", f"{curve[-1]['objective']:.4f}", f"{100 * lost:.2f} %"]
        lines.append([*place, f"{curve[-1]['steps']:.1f}", f"{worst[0]:+.3f}", f"{worst[1]:+.3f}"])
    head = ["seed", "best objective", "last objective", "less by", "steps", "worst 1 %", "worst image"]
    within = f"The last objective is within {100 * ALLOWED:g} % of the best on {stays} of {len(lines)} seeds"
    said = f"{within}, after {facts['updates']} updates. Worst images: reward of the last TPM minus 28 steps."
    return "\n\n".join([said, table(head, lines), origin(facts)])


def main() -> None:
    parser = options(__doc__, RESULTS / "stability.json", keeps=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/stability"))
    parser.add_argument("--only", action="store_true", help="train and judge, and write no results")
    chosen = parser.parse_args()
    out, page, _ = chosen.out.resolve(), chosen.page.resolve(), os.chdir(RESULTS.parents[1])
    if not chosen.render:
        changes = [*SETTINGS, *chosen.set]
        recipes = [
            trained(recipe_of(f"stability-{s}", chosen.runs / f"seed-{s}", s, changes, "tinyworld"))
            for s in chosen.seeds
        ]
        if chosen.keep:
            _ = [keep(recipe) for recipe in recipes]
        rows = [judged(recipe, chosen.runs / "controls", "last") for recipe in recipes]
        if chosen.only:
            return
        losses = [column(r["tpdm"], "score") - column(r[EULER], "score") for r in rows]
        facts = {
            "seeds": chosen.seeds,
            "prompts": len(rows[0]["tpdm"]),
            "changes": changes,
            "updates": recipes[0].rl.updates,
            "validations": [validations(recipe) for recipe in recipes],
            "worst": [[float(np.quantile(loss, 0.01)), float(loss.min())] for loss in losses],
            "minus": {EULER: difference([r["tpdm"] for r in rows], [r[EULER] for r in rows])},
            **provenance(recipes[0]),
        }
        write_json(out, facts)
    write_part(page, "stability", part(json.loads(out.read_text(encoding="utf-8"))))
    print(json.dumps({"written": [out.name, page.name]}))


if __name__ == "__main__":
    main()
