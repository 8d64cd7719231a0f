"""How much there is to gain by looking: a search for the best schedule of N steps for every image.

Every schedule is tried on the same noise. `shared` is the best one for all images, chosen on the other half of them.
`own` is the best one of each image, chosen by the reward of its finished image, which no policy can know before. The
scene reader's accuracy of the same images shows how much of that is the reward's luck. The TPMs of frontier get the
same images and are asked for N steps; the grid that the search began with is subtracted at as many steps.
With --steps 5 --print a process may take each N.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks.page import signed, table
from benchmarks.quality.comparison import difference, origin, results_of
from benchmarks.quality.schedule_search import search_schedules
from benchmarks.quality.trainings import conditioned_recipe, trained
from tpdm.config.recipe import Recipe
from tpdm.core.io import write_json
from tpdm.evaluation.baselines import best_hand_designed, hand_designed_schedules, mix_schedules
from tpdm.evaluation.comparison import neighboring_steps
from tpdm.evaluation.runner import EvalResult, EvalTask, evaluate_policy
from tpdm.evaluation.statistics import paired_bootstrap
from tpdm.evaluation.tasks import make_tasks
from tpdm.policies.conditioned import quality_for
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.gamma import quality_to_gamma
from tpdm.policies.pretrained import load_policy


def search(task: EvalTask, tuning: EvalTask, steps: int, candidates: int, rounds: int) -> dict[str, Any]:
    """The best schedule of each image minus the best hand-made grid, and minus the best schedule for all images."""
    name, start, _ = best_hand_designed(tuning, steps)
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


def learned(conditioned: Recipe, task: EvalTask, steps: int, grid: str) -> tuple[EvalResult, EvalResult]:
    """A TPM that is asked for a number of steps, and the grid at as many steps as it takes."""
    policy = load_policy(Path(conditioned.output) / "best")
    assert policy.artifact is not None
    assert policy.artifact.gamma_steps is not None
    gamma = quality_to_gamma(quality_for(policy, steps), *zip(*policy.artifact.gamma_steps, strict=True))
    tpdm = evaluate_policy(f"tpdm, {steps} steps", policy, task, gamma=gamma)
    taken = float(tpdm.column("steps").mean())
    grids = [hand_designed_schedules(task.pipe, n, task.arguments)[grid] for n in neighboring_steps(taken)]
    return tpdm, mix_schedules(grid, [evaluate_policy(f"{grid} {g.steps}", g, task) for g in grids], taken)


def compared(steps: int, task: EvalTask, tpms: list[Recipe], grid: str) -> dict[str, Any]:
    """The TPMs on the same images, compared with the grid that the search began with."""
    pairs = [learned(tpm, task, steps, grid) for tpm in tpms]
    minus = difference([tpdm.rows for tpdm, _ in pairs], [other.rows for _, other in pairs])
    return {"tpdm_steps": [float(tpdm.column("steps").mean()) for tpdm, _ in pairs], "tpdm_minus": minus}


def share_of(gain: float, oracle: float) -> str:
    """A gain as a share of the oracle's."""
    return f"{100 * gain / oracle:.0f} %"


def part(facts: dict[str, Any]) -> str:
    """The section of the page."""
    lines = []
    for found in facts["search"]:
        tpdm, oracle = found["tpdm_minus"]["reward"]["mean"], found["own_minus_start"]
        cells = [signed(found[key]) for key in ("shared_minus_start", "own_minus_start", "accuracy_own_minus_start")]
        share = f"{np.mean(found['tpdm_steps']):.1f}", signed(tpdm), share_of(tpdm[0], oracle[0])
        lines.append([str(found["steps"]), f"{found['start']}: {found['start_mean']:.4f}", *cells, *share])
    head = "steps | best grid | one schedule for all | own for each image | its accuracy | tpdm's steps"
    intro = (
        f"Reward beyond the best hand-made grid on {facts['prompts']} images, {facts['search'][0]['tried']} schedules "
        "tried for each. One schedule for all is chosen on the other half of the images; own schedules by the reward "
        "of the finished image, which no policy can know."
    )
    return "\n\n".join([intro, table(f"{head} | tpdm | of the oracle's", lines), origin(facts)])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frontier-runs", type=Path, default=Path("runs/frontier"), help="folder of the trainings of frontier"
    )
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 12])
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    tpms = [trained(conditioned_recipe(chosen.frontier_runs, seed, chosen.set), chosen.keep) for seed in chosen.seeds]
    tuning, test = make_tasks(tpms[0])
    task = test.first(chosen.images)
    what = [chosen.images, chosen.candidates, chosen.rounds, *chosen.set]  # and no TPM
    kept = chosen.runs / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    searched = []
    for steps in chosen.steps:
        path = kept / f"{steps}.json"
        if not path.exists():
            write_json(path, search(task, tuning, steps, chosen.candidates, chosen.rounds))
        found = json.loads(path.read_text(encoding="utf-8"))
        searched.append(found | compared(steps, task, tpms, found["start"]))
    return results_of(chosen, tpms[0], chosen.images, chosen.set, search=searched)
