"""How much there is to gain by looking, on tinyworld: the best schedule of N steps for every image, searched for.

    python benchmarks/oracle.py                   128 images, N = 5, 8, 12: writes docs/results and docs/frontier.md
    python benchmarks/oracle.py --steps 5 --only      one N, and nothing is written: a process may take each

Every schedule is tried on the same noise. `shared` is the best one for all images, chosen on the other half of
them; `own` the best one of each image, chosen by the reward of its finished picture, which no policy can see before.
The scene reader's accuracy of the same pictures says how much of that the reward's luck is. Beside it stand the TPMs
of frontier.py on the same images, asked for N steps, less the grid that the search began with at as many steps.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from experiment import (
    RESULTS,
    difference,
    options,
    origin,
    recipe_of,
    signed,
    table,
    trained,
    write_part,
)
from tpdm.config.recipe import Recipe
from tpdm.core.io import write_json
from tpdm.evaluation.baselines import best_of_family, blend, family
from tpdm.evaluation.comparison import whole
from tpdm.evaluation.oracle import search_schedules
from tpdm.evaluation.runner import EvalResult, EvalTask, evaluate_policy
from tpdm.evaluation.statistics import paired_bootstrap
from tpdm.evaluation.summary import provenance
from tpdm.evaluation.tasks import make_tasks
from tpdm.policies.conditioned import quality_for
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.gamma import quality_to_gamma
from tpdm.policies.pretrained import load_policy


def search(task: EvalTask, tuning: EvalTask, steps: int, candidates: int, rounds: int) -> dict[str, Any]:
    """What the best schedule of each image has beyond the best hand-made grid of as many steps, and beyond one."""
    name, start, _ = best_of_family(tuning, steps)
    images = len(task.prompts)
    bar = tqdm(total=(1 + candidates * (1 + rounds)) * images, desc=f"{steps} steps", unit="image")

    def run(schedules: list[list[float]]) -> EvalResult:
        return evaluate_policy(f"{steps} steps", FixedSchedule(schedules), task)

    def score(schedules: list[list[float]]) -> np.ndarray:
        scores = run(schedules).column("score")
        bar.update(images)
        return scores

    found = search_schedules(score, start.lists[0], images, candidates, rounds, seed=steps)
    bar.close()
    accuracy = {k: run(s).column("accuracy") for k, s in (("start", start.lists * images), ("own", found.own))}
    return {
        "steps": steps,
        "start": name,
        "tried": found.tried,
        "start_mean": float(found.start_B.mean()),
        "shared_minus_start": paired_bootstrap(found.shared_B - found.start_B),
        "own_minus_shared": paired_bootstrap(found.own_B - found.shared_B),
        "own_minus_start": paired_bootstrap(found.own_B - found.start_B),
        "accuracy_own_minus_start": paired_bootstrap(accuracy["own"] - accuracy["start"]),
        "mean_own": np.mean(found.own, axis=0).tolist(),
        "sd_own": np.std(found.own, axis=0).tolist(),
    }


def learned(dial: Recipe, task: EvalTask, steps: int, grid: str) -> tuple[EvalResult, EvalResult]:
    """A TPM asked for so many steps, and the grid at as many as it takes."""
    policy = load_policy(Path(dial.output) / "best")
    assert policy.artifact is not None
    assert policy.artifact.gamma_steps is not None
    gamma = quality_to_gamma(quality_for(policy, steps), *zip(*policy.artifact.gamma_steps, strict=True))
    mine = evaluate_policy(f"tpdm, {steps} steps", policy, task, gamma=gamma)
    taken = float(mine.column("steps").mean())
    grids = [family(task.pipe, n, task.arguments)[grid] for n in whole(taken)]
    return mine, blend(grid, [evaluate_policy(f"{grid} {g.steps}", g, task) for g in grids], taken)


def beside(steps: int, task: EvalTask, dials: list[Recipe], grid: str) -> dict[str, Any]:
    """The TPMs on the same images, beside the grid that the search began with."""
    pairs = [learned(dial, task, steps, grid) for dial in dials]
    minus = difference([mine.rows for mine, _ in pairs], [other.rows for _, other in pairs])
    return {"tpdm_steps": [float(mine.column("steps").mean()) for mine, _ in pairs], "tpdm_minus": minus}


def part(facts: dict[str, Any]) -> str:
    """The page's part."""
    lines = []
    for found in facts["search"]:
        mine, most = found["tpdm_minus"]["reward"]["mean"], found["own_minus_start"]
        cells = [signed(found[key]) for key in ("shared_minus_start", "own_minus_start", "accuracy_own_minus_start")]
        share = f"{np.mean(found['tpdm_steps']):.1f}", signed(mine), f"{100 * mine[0] / most[0]:.0f} %"
        lines.append([str(found["steps"]), f"{found['start']}: {found['start_mean']:.4f}", *cells, *share])
    head = ["steps", "best grid", "one schedule for all", "own for each image", "its accuracy", "tpdm's steps"]
    said = (
        f"Reward beyond the best hand-made grid on {facts['prompts']} images, {facts['search'][0]['tried']} schedules "
        "tried for each. One schedule for all is chosen on the other half of the images; own schedules by the reward "
        "of the finished picture, which no policy can know."
    )
    return "\n\n".join([said, table([*head, "tpdm", "of the oracle's"], lines), origin(facts)])


def main() -> None:
    parser = options(__doc__, RESULTS / "oracle.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/oracle"), help="an N that was searched is kept there")
    parser.add_argument("--dials", type=Path, default=Path("runs/frontier"), help="where the TPMs with a dial are")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 12])
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="store_true", help="search, and write no results")
    chosen = parser.parse_args()
    out, page, _ = chosen.out.resolve(), chosen.page.resolve(), os.chdir(RESULTS.parents[1])
    if not chosen.render:
        places = [(s, chosen.dials / f"seed-{s}" / "tpm") for s in chosen.seeds]
        dials = [trained(recipe_of("tpm", place, s, chosen.set, "tinyworld-dial")) for s, place in places]
        tuning, test = make_tasks(dials[0])
        task = test.first(chosen.images)
        what = [chosen.images, chosen.candidates, chosen.rounds, *chosen.set]  # and no TPM
        kept = chosen.runs / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
        for steps in chosen.steps:
            if not (kept / f"{steps}.json").exists():
                write_json(kept / f"{steps}.json", search(task, tuning, steps, chosen.candidates, chosen.rounds))
        if chosen.only:
            return
        searched = [json.loads((kept / f"{n}.json").read_text(encoding="utf-8")) for n in chosen.steps]
        searched = [found | beside(found["steps"], task, dials, found["start"]) for found in searched]
        facts = {"seeds": chosen.seeds, "prompts": chosen.images, "changes": chosen.set, "search": searched}
        write_json(out, facts | provenance(dials[0]))
    write_part(page, "oracle", part(json.loads(out.read_text(encoding="utf-8"))))
    print(json.dumps({"written": [out.name, page.name]}))


if __name__ == "__main__":
    main()
