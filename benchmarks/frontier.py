"""Quality against steps on tinyworld, over training seeds: one TPM with a dial, against the best fixed schedules.

    python benchmarks/frontier.py                      trains, evaluates, writes results and docs/frontier.md: hours
    python benchmarks/frontier.py --seeds 0 --only     evaluates one seed and writes nothing: a process may take each
    python benchmarks/frontier.py --render             the page and its picture alone
    python benchmarks/frontier.py --seeds 0 1 --set rl.updates=1 evaluation.prompts=4 ...   changes to the recipe

For every seed a TPM is trained by the recipe tinyworld-dial.yaml; beside it TPMs that see only the time, which are the
best fixed schedules that the same training finds at every number of steps (--tuned says how many of these; seeds take
them in turn). These are trained for gammas from .99 on: a schedule without eyes takes about five steps there, and the
fewer gammas a training serves, the more images each of them is heard by. Both are set beside hand-made grids at each
quality of the dial by `tpdm eval`. Intervals are over training seeds and prompts at once. Everything is resumable: what
is trained and judged is not done again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiment import MEASURES, RESULTS, ROOT, Rows, column, difference, keep, options, recipe_of, trained
from frontier_page import write_page
from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics, write_json
from tpdm.evaluation.evaluate import evaluate
from tpdm.evaluation.summary import provenance

STATIC = "static-28"
OWN = (  # at the TPM's own gamma: what is left of it when something is taken away
    "mean schedule of tpdm",
    "shuffled schedules of tpdm",
    "its numbers of steps dealt at random, best grid",
    "error control",
)
FIXED = ("tpm.time_only=true", "reward.gamma_range=[0.99, 0.99995]", "tpm.init_steps_low_gamma=5")


def run_seed(seed: int, tuned: int, folder: Path, changes: list[str], kept: bool) -> Recipe:
    """Trains and evaluates what is missing of one seed; its recipe."""

    def recipe(name: str, number: int, *more: str) -> Recipe:
        place = folder / f"seed-{number}" / name
        return recipe_of(name, place, number, [*changes, *more], "tinyworld-dial")

    fixed = trained(recipe("fixed", tuned, *FIXED))
    tpm = trained(recipe("tpm", seed))
    if kept:
        keep(fixed), keep(tpm)
    judged = recipe(
        "tpm",
        seed,
        f"evaluation.tuned_baseline={fixed.output}/best",
        f"evaluation.baseline_cache={folder / 'controls'}",
    )
    if not (Path(judged.output) / "eval" / "summary.json").exists():
        evaluate(judged)
    return judged


def rows_of(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows along the dial, rows at the TPM's own gamma, and the summary of one evaluation."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return read_metrics(folder / "points.jsonl"), read_metrics(folder / "results.jsonl"), summary


def named(rows: Rows, policy: str) -> Rows:
    return [row for row in rows if row["policy"] == policy]


def at_cap(mine: list[Rows], static: list[Rows], cap: int) -> dict[str, Any]:
    """What the images whose last step is forced by the cap bring to the mean difference from 28 steps, and the others.

    Returns:
        ``share`` of images at the cap, of each seed; ``capped`` and ``others``, parts of the mean, over seeds.
    """
    ends = [column(rows, "steps") >= cap for rows in mine]
    minus = [column(a, "score") - column(b, "score") for a, b in zip(mine, static, strict=True)]
    return {
        "cap": cap,
        "share": [float(end.mean()) for end in ends],
        "capped": float(np.mean([(m * end).mean() for m, end in zip(minus, ends, strict=True)])),
        "others": float(np.mean([(m * ~end).mean() for m, end in zip(minus, ends, strict=True)])),
    }


def point(quality: float, dials: list[Rows], owns: list[Rows], cap: int) -> dict[str, Any]:
    """One quality of the dial: every seed's steps, and what the TPM has beyond each control."""
    at = [[row for row in rows if row["quality"] == quality] for rows in dials]
    mine = [[row for row in rows if row["policy"].startswith("tpdm")] for rows in at]
    names = sorted({row["policy"] for rows in at for row in rows} - {mine[0][0]["policy"]})
    minus = {name: difference(mine, [named(rows, name) for rows in at]) for name in names}
    static = [named(rows, STATIC) for rows in owns]
    minus[STATIC] = difference(mine, static)
    return {
        "quality": quality,
        "steps": [float(column(rows, "steps").mean()) for rows in mine],
        "means": {label: float(np.mean([column(r, key).mean() for r in mine])) for label, key in MEASURES.items()},
        "controls": {
            name: float(np.mean([column(named(r, name), "score").mean() for r in at if named(r, name)]))
            for name in names
        },
        "minus": minus,
        "cap": at_cap(mine, static, cap),
    }


def collect(recipes: list[Recipe], seeds: list[int], tuned: list[int], changes: list[str]) -> dict[str, Any]:
    """The results: points of the dial, what looking adds at the TPM's own gamma, the oracle's share."""
    found = [rows_of(Path(recipe.output) / "eval") for recipe in recipes]
    dials, owns, summaries = ([f[i] for f in found] for i in range(3))
    mine = [named(rows, "tpdm") for rows in owns]
    names = [name for name in OWN if named(owns[0], name)]
    static = [column(named(rows, STATIC), "score").mean() for rows in owns]
    cap = recipes[0].sampling.max_steps
    return {
        "seeds": seeds,
        "tuned_seeds": tuned,
        "prompts": len(mine[0]),
        "changes": changes,
        "static": float(np.mean(static)),
        "points": [point(q, dials, owns, cap) for q in sorted({row["quality"] for row in dials[0]})],
        "own": {
            "steps": [float(column(rows, "steps").mean()) for rows in mine],
            "minus": {name: difference(mine, [named(rows, name) for rows in owns]) for name in names},
        },
        "oracle": [{k: v for k, v in s["oracle"].items() if k != "curve"} for s in summaries if s["oracle"]],
        **{k: v for k, v in summaries[0].items() if k in provenance(recipes[0])},
    }


def main() -> None:
    parser = options(__doc__, RESULTS / "frontier.json", keeps=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--tuned", type=int, default=5, help="trainings that see only the time")
    parser.add_argument("--only", action="store_true", help="evaluate, and write no results")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "frontier.png")
    chosen = parser.parse_args()
    out, page, picture = (path.resolve() for path in (chosen.out, chosen.page, chosen.picture))
    os.chdir(ROOT)
    if not chosen.render:
        tuned = [seed % chosen.tuned for seed in chosen.seeds]
        recipes = [
            run_seed(s, t, chosen.runs, chosen.set, chosen.keep) for s, t in zip(chosen.seeds, tuned, strict=True)
        ]
        if chosen.only:
            return
        write_json(out, collect(recipes, chosen.seeds, sorted(set(tuned)), chosen.set))
    write_page(page, picture, json.loads(out.read_text(encoding="utf-8")))
    print(json.dumps({"written": [out.name, page.name, picture.name]}))


if __name__ == "__main__":
    main()
