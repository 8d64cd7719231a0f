"""Do the differences that frontier.py finds hold on other prompts, three times as many? Nothing is trained anew.

    python benchmarks/other_prompts.py                  the TPMs of frontier.py, 3,072 prompts that it never showed
    python benchmarks/other_prompts.py --seeds 0 --only     one seed, and nothing is written: a process may take each

The same dials and the same fixed schedules at the same five qualities, on held-out prompts behind those of frontier.py:
whoever read its tables before has chosen nothing by these.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment import RESULTS, Rows, column, difference, options, origin, recipe_of, trained, write_part
from frontier import FIXED
from frontier_page import GRID, TUNED, along, judges, verdicts
from tpdm.config.recipe import Recipe
from tpdm.core.io import write_json
from tpdm.evaluation.comparison import BaselineComparison
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.runner import EvalResult, EvalTask
from tpdm.evaluation.summary import provenance
from tpdm.evaluation.tasks import fingerprint, learned_fingerprint, make_tasks
from tpdm.policies.pretrained import load_policy

LIMIT = 60_000  # prompts that the source is asked for, so that enough are held out; training sees the first 20,000


def behind(task: EvalTask, seen: int) -> EvalTask:
    """A task without its first prompts."""
    return replace(task, prompts=task.prompts[seen:], seeds=task.seeds[seen:])


def judged(recipe: Recipe, seen: int, controls: Path) -> list[dict[str, EvalResult]]:
    """For every quality of the dial: the TPM, the best hand-made grid, and where it reaches the tuned schedule."""
    tuning, test = make_tasks(recipe)
    test = behind(test, seen)
    policy, tuned = load_policy(Path(recipe.output) / "best"), load_policy(recipe.evaluation.tuned_baseline or "")
    common = fingerprint(recipe, tuning, test)
    store = Store(Path(recipe.output) / "eval-others", {**common, **learned_fingerprint(recipe)})
    match = BaselineComparison(test, tuning, policy, tuned, store, Store(controls, common, shared=True))
    found = []
    for i in range(recipe.evaluation.gamma_points):
        quality = i / (recipe.evaluation.gamma_points - 1)
        mine = match.learned(f"tpdm, quality {quality:g}", match.gamma(quality))
        steps = float(mine.column("steps").mean())
        others = [match.grid_at(steps), match.tuned_at(steps)]
        found.append({"tpdm": mine, **{other.name: other for other in others if other is not None}})
    return found


def point(quality: float, seeds: list[dict[str, EvalResult]]) -> dict[str, Any]:
    """One quality of the dial, over seeds."""
    mine = [seed["tpdm"].rows for seed in seeds]

    def beside(name: str) -> list[Rows]:
        return [seed[name].rows if name in seed else [] for seed in seeds]

    return {
        "quality": quality,
        "steps": [float(column(rows, "steps").mean()) for rows in mine],
        "minus": {name: difference(mine, beside(name)) for name in (GRID, TUNED)},
    }


def main() -> None:
    parser = options(__doc__, RESULTS / "other_prompts.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="of frontier.py")
    parser.add_argument("--seen", type=int, default=1024, help="prompts that frontier.py showed")
    parser.add_argument("--prompts", type=int, default=3072)
    parser.add_argument("--only", action="store_true", help="judge, and write no results")
    chosen = parser.parse_args()
    out, page, _ = chosen.out.resolve(), chosen.page.resolve(), os.chdir(RESULTS.parents[1])
    if not chosen.render:
        recipes = []
        for seed in chosen.seeds:
            place = chosen.runs / f"seed-{seed}"
            tpm = trained(recipe_of("tpm", place / "tpm", seed, chosen.set, "tinyworld-dial"))
            fixed = trained(recipe_of("fixed", place / "fixed", seed, [*chosen.set, *FIXED], "tinyworld-dial"))
            wanted = replace(
                tpm.evaluation, prompts=chosen.seen + chosen.prompts, tuned_baseline=f"{fixed.output}/best"
            )
            recipes.append(replace(tpm, evaluation=wanted, prompts=replace(tpm.prompts, limit=LIMIT)))
        found = [judged(recipe, chosen.seen, chosen.runs / "controls-others") for recipe in recipes]
        if chosen.only:
            return
        count = recipes[0].evaluation.gamma_points
        facts = {
            "seeds": chosen.seeds,
            "prompts": len(found[0][0]["tpdm"].rows),
            "changes": chosen.set,
            "points": [point(i / (count - 1), [seed[i] for seed in found]) for i in range(count)],
            **provenance(recipes[0]),
        }
        write_json(out, facts)
    facts = json.loads(out.read_text(encoding="utf-8"))
    write_part(page, "other prompts", "\n\n".join([verdicts(facts), judges(facts), along(facts), origin(facts)]))
    print(json.dumps({"written": [out.name, page.name]}))


if __name__ == "__main__":
    main()
