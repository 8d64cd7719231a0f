"""A solver of second order under learned times, on tinyworld: the quality of 28 Euler steps at how many evaluations?

    python benchmarks/second_order.py                 five seeds: trains, judges, writes the results
    python benchmarks/second_order.py --seeds 0 --only     one seed, and nothing is written: a process may take each
    python benchmarks/second_order.py --set sampling.solver=ab2 --out runs/ab2.json --runs runs/ab2

Every seed trains a TPM with a narrow dial and DPM++ 2M, whose calibration is asked for seven steps on average, and sets
it beside the pipeline's own 28 Euler steps and the best hand-made grid of as many steps with the same solver. A gamma
alone does not say how many steps a training ends with: with one of .9967 five seeds came to 5.7 to 7.5.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiment import RESULTS, column, difference, keep, options, origin, recipe_of, signed, table, trained, write_part
from tpdm.config.recipe import Recipe
from tpdm.core.io import write_json
from tpdm.evaluation.comparison import BaselineComparison
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.summary import provenance
from tpdm.evaluation.tasks import fingerprint, learned_fingerprint, make_tasks
from tpdm.policies.conditioned import quality_for
from tpdm.policies.pretrained import load_policy

EULER, GRID = "static-28, euler", "best grid, equal steps"
LIMIT = 7.0  # a quarter of 28
SETTINGS = (
    "sampling.solver=dpmpp_2m",
    "reward.gamma=0.9967",
    "reward.gamma_range=[0.994, 0.9985]",
    "tpm.init_steps_low_gamma=5",
    "tpm.init_steps=12",
    "rl.updates=160",
)


def judged(recipe: Recipe, controls: Path, which: str = "best") -> dict[str, list[dict[str, Any]]]:
    """Rows of the best or last TPM, of 28 Euler steps and of the best grid; what was judged is not made again.

    A TPM with a dial is asked for ``LIMIT`` steps on average.
    """
    tuning, test = make_tasks(recipe)
    common = fingerprint(recipe, tuning, test)
    store = Store(Path(recipe.output) / f"eval-{which}", {**common, **learned_fingerprint(recipe, which)})
    policy = load_policy(Path(recipe.output) / which)
    match = BaselineComparison(test, tuning, policy, None, store, Store(controls, common, shared=True))
    dialled = policy.shape.gamma_range is not None
    learned = match.learned("tpdm", match.gamma(quality_for(policy, LIMIT)) if dialled else None)
    grid = next(r for r in match.baselines_at_nfe(float(learned.column("steps").mean())) if r.name == GRID)
    return {"tpdm": learned.rows, EULER: match.default_first_order(28).rows, GRID: grid.rows}


def part(facts: dict[str, Any]) -> str:
    """The page's part."""
    lines = [
        [f"minus {name}", *(signed(minus[label]["mean"]) for label in ("reward", "accuracy", "residual"))]
        for name, minus in (("28 Euler steps, default", facts["minus"][EULER]), (GRID, facts["minus"][GRID]))
    ]
    steps = facts["steps"]
    within = sum(s <= LIMIT for s in steps)
    said = (
        f"Solver `{facts['solver']}`, a dial of gamma {facts['gammas'][0]:g} to {facts['gammas'][1]:g} that is asked "
        f"for {LIMIT:g} steps on average. Mean steps on the seeds: "
        f"{', '.join(f'{s:.2f}' for s in steps)}; {within} of {len(steps)} within {LIMIT:g}. Worst 1 % of images "
        f"against 28 Euler steps: {facts['minus'][EULER]['worst'][0]:+.3f} of the reward."
    )
    each = ", ".join(signed(i) for i in facts["minus"][EULER]["reward"]["seeds"])
    return "\n\n".join(
        [
            said,
            table(["tpdm", "reward", "accuracy", "residual"], lines),
            f"Reward minus 28 Euler steps, each seed: {each}.",
            origin(facts),
        ]
    )


def main() -> None:
    parser = options(__doc__, RESULTS / "second_order.json", keeps=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/second_order"))
    parser.add_argument("--only", action="store_true", help="train and judge, and write no results")
    chosen = parser.parse_args()
    out, page, _ = chosen.out.resolve(), chosen.page.resolve(), os.chdir(RESULTS.parents[1])
    if not chosen.render:
        changes = [*SETTINGS, *chosen.set]
        recipes = [
            trained(recipe_of(f"second-{s}", chosen.runs / f"seed-{s}", s, changes, "tinyworld-dial"))
            for s in chosen.seeds
        ]
        if chosen.keep:
            _ = [keep(recipe) for recipe in recipes]
        rows = [judged(recipe, chosen.runs / "controls") for recipe in recipes]
        if chosen.only:
            return
        mine = [r["tpdm"] for r in rows]
        facts = {
            "seeds": chosen.seeds,
            "prompts": len(mine[0]),
            "changes": changes,
            "solver": recipes[0].sampling.solver,
            "gammas": recipes[0].reward.gamma_range,
            "steps": [float(np.mean(column(r, "steps"))) for r in mine],
            "minus": {name: difference(mine, [r[name] for r in rows]) for name in (EULER, GRID)},
            **provenance(recipes[0]),
        }
        write_json(out, facts)
    write_part(page, "second order", part(json.loads(out.read_text(encoding="utf-8"))))
    print(json.dumps({"written": [out.name, page.name]}))


if __name__ == "__main__":
    main()
