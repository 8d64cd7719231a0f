"""Does a TPM end better if it begins with the schedules of an oracle? Compared with the default of ablations.

The oracle makes each of 768 training images with the best hand-made grid of 3, 4, ... 28 steps. It keeps the one with
the highest eq. (9), which no policy can know before. A fresh TPM follows those schedules and is fitted, by likelihood,
to their times ("taught"). Then it is trained as usual ("taught, then trained"). It is compared with the trainings of
ablations, seed by seed, on the same test.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.page import signed, table
from benchmarks.quality.ablations import judged, recipe_for, tested
from benchmarks.quality.comparison import (
    Rows,
    apply_step_penalty,
    column,
    interval,
    objective_difference,
    origin,
    results_of,
)
from benchmarks.quality.experiments import EXPERIMENTS
from benchmarks.quality.trainings import trained, training_hash
from tpdm.config.recipe import Recipe
from tpdm.core.io import write_json
from tpdm.core.types import Decision, Observation
from tpdm.evaluation.baselines import best_hand_designed
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.runner import EvalTask, evaluate_policy
from tpdm.evaluation.tasks import fingerprint, make_tasks
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.pretrained import load_policy
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.batching.proxy import shallow_clone
from tpdm.sampling.samplers import PipelineSampler
from tpdm.training.build import build_components
from tpdm.training.initialization import calibrate_policy, calibration_request
from tpdm.training.rollout import RolloutBuffer, make_rollout_buffer

EXPERIMENT = EXPERIMENTS["distillation"]
STEPS = (3, 4, 5, 6, 8, 10, 14, 20, 28)
TEACHING = 9  # seeds of the taught images: no stream of tpdm.core.seeding, and results follow from it
PASSES, BATCH, RATE = 20, 512, 1e-3
UNSEEN = 0.1  # share of the images that the fit does not see
WAYS = ("trained", "taught", "taught, then trained")


def best_of_each(
    recipe: Recipe, tuning: EvalTask, task: EvalTask, place: Path
) -> tuple[list[list[float]], dict[str, float]]:
    """The schedule of the highest eq. (9) for every image of a task, compared with the best one for all."""
    store = Store(place, fingerprint(recipe, tuning, task), shared=True)
    grids = [best_hand_designed(tuning, n, store)[1] for n in STEPS]
    found = [evaluate_policy(f"best grid {n}", grid, task, store) for n, grid in zip(STEPS, grids, strict=True)]
    objective_NB = np.stack([apply_step_penalty(result.rows, recipe.reward.gamma) for result in found])
    score_NB = np.stack([result.column("score") for result in found])
    own_B, single = objective_NB.argmax(axis=0), int(objective_NB.mean(axis=1).argmax())
    facts = {
        "images": len(task.prompts),
        "steps": float(np.mean([STEPS[i] for i in own_B])),
        "score": float(np.take_along_axis(score_NB, own_B[None], axis=0).mean()),
        "objective": float(objective_NB.max(axis=0).mean()),
        "single_steps": STEPS[single],
        "single_objective": float(objective_NB[single].mean()),
    }
    return [grids[i].lists[0] for i in own_B], facts


def follower(
    policy: TimePredictionModule, schedules: Sequence[Sequence[float]], stop_below: float
) -> TimePredictionModule:
    """A TPM that observes as usual and decides as the oracle: one list of times for each image."""
    times = FixedSchedule([list(times) for times in schedules])

    def propose(observation: Observation, seeds: Sequence[int] | None) -> Decision:
        target_B = times.propose(observation, None).t_next_B
        # Any time below the threshold ends the image. The oracle's 0 is a ratio at which no Beta has a density.
        t_next_B = torch.where(target_B < stop_below, torch.full_like(target_B, stop_below / 2), target_B)
        return Decision(t_next_B, t_next_B / observation.t_B, torch.zeros_like(t_next_B))

    driven = shallow_clone(policy)
    vars(driven).update(propose=propose)
    assert isinstance(driven, TimePredictionModule)
    return driven


def observed(policy: TimePredictionModule, task: EvalTask, schedules: Sequence[Sequence[float]]) -> RolloutBuffer:
    """The TPM's observations along the schedules, with their decisions."""
    trajectories = []
    for first in tqdm(range(0, len(task.prompts), task.batch), desc="follow", leave=False):
        part = slice(first, first + task.batch)
        driven = follower(policy, schedules[part], task.stop_below)
        adaptive = attach(task.pipe, driven, solver=task.solver, max_steps=task.max_steps, stop_below=task.stop_below)
        request = SampleRequest(task.prompts[part], task.seeds[part], record=True)
        made = PipelineSampler(adaptive, task.batch, task.arguments)(request)
        trajectories += made.trajectories or []
    return make_rollout_buffer(trajectories)


def fit(policy: TimePredictionModule, replay: RolloutBuffer, seed: int) -> tuple[float, float]:
    """Fits the TPM to the decisions; returns the log-likelihood of unseen ones, before and after.

    The TPM keeps the weights of the pass with the highest one: it soon overfits a few hundred images.
    """
    seen = round(replay.trajectories * (1 - UNSEEN))
    shown, unseen = replay.part(0, seen), replay.part(seen, replay.trajectories)
    optimizer, generator = torch.optim.AdamW(policy.parameters(), lr=RATE), torch.Generator().manual_seed(seed)

    observations = {id(part): part.observation for part in (shown, unseen)}

    def likelihood(part: RolloutBuffer, rows: Tensor | slice) -> Tensor:
        return policy.evaluate(observations[id(part)].rows(rows), part.action_T[rows])[0].mean()

    with torch.no_grad():
        before = best = float(likelihood(unseen, slice(None)))
    weights = copy.deepcopy(policy.state_dict())
    for _ in tqdm(range(PASSES), desc="fit", leave=False):
        for rows in torch.randperm(len(shown.action_T), generator=generator).split(BATCH):
            optimizer.zero_grad()
            (-likelihood(shown, rows)).backward()
            optimizer.step()
        with torch.no_grad():
            now = float(likelihood(unseen, slice(None)))
        if now > best:
            best, weights = now, copy.deepcopy(policy.state_dict())
    policy.load_state_dict(weights)
    return before, best


def taught(recipe: Recipe, images: int, runs: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a TPM that was fitted to the oracle's schedules, and its facts; made once."""
    place = runs / f"taught-{training_hash(recipe)}"
    known = place / "facts.json"
    if not known.exists():
        tuning, test = make_tasks(recipe)
        parts = build_components(recipe, place)
        texts = [prompt.text for prompt in parts.train_prompts[:images]]
        states = [np.random.SeedSequence((TEACHING, i)).generate_state(1, np.uint64) for i in range(len(texts))]
        seeds = [int(state[0]) >> 1 for state in states]
        task = replace(test, prompts=texts, seeds=seeds, judge=None)
        schedules, oracle = best_of_each(recipe, tuning, task, runs / "oracle")
        calibrate_policy(parts.policy, parts.sampler, calibration_request(recipe, parts))
        before, after = fit(parts.policy, observed(parts.policy, task, schedules), recipe.seed)
        own = {"steps_mean": oracle["steps"], "objective_mean": oracle["objective"], "score_mean": oracle["score"]}
        parts.save("taught", parts.policy, {"update": 0, "validation": own})
        write_json(known, {"oracle": oracle, "likelihood": [before, after]})
    return place / "taught", json.loads(known.read_text(encoding="utf-8"))


def evaluated(recipe: Recipe, policy: Path, place: Path) -> Rows:
    """Rows of a TPM on the test of ablations."""
    tuning, test = make_tasks(recipe)
    return evaluate_policy("tpdm", load_policy(policy), test, Store(place, fingerprint(recipe, tuning, test))).rows


def one_seed(changes: Sequence[str], seed: int, images: int, runs: Path, kept: Path) -> dict[str, Any]:
    """Rows of the test for each of the three ways, and the facts of the oracle."""
    alone = recipe_for(changes, seed, runs)
    if not (kept / f"{training_hash(alone)}.json").exists():
        trained(alone)
    judged(alone, kept)
    teacher, facts = taught(alone, images, runs)
    # The test is of the last TPM: validations would choose nothing.
    rare = f"validation.every={alone.rl.updates}"
    then = trained(recipe_for([*changes, rare, f"tpm.init_from={teacher}"], seed, runs))
    return {
        **facts,
        "trained": tested(training_hash(alone), kept),
        "taught": evaluated(alone, teacher, teacher.parent / "eval"),
        "taught, then trained": evaluated(then, Path(then.output) / "last", Path(then.output) / "eval-last"),
    }


def way(found: Sequence[dict[str, Any]], name: str, gamma: float) -> dict[str, Any]:
    """One line of the table."""
    runs, baselines = ([seed[which] for seed in found] for which in (name, "trained"))
    facts = {
        "steps": [float(column(rows, "steps").mean()) for rows in runs],
        "reward": [float(column(rows, "score").mean()) for rows in runs],
        "objective": [float(apply_step_penalty(rows, gamma).mean()) for rows in runs],
    }
    if name == "trained":
        return facts
    reward = interval([column(a, "score") - column(b, "score") for a, b in zip(runs, baselines, strict=True)])
    return {**facts, "minus": {"reward": reward, "objective": objective_difference(runs, baselines, gamma)}}


def part(facts: dict[str, Any]) -> str:
    """The section of the page."""
    oracle, (before, after) = facts["oracle"], np.mean(facts["likelihood"], axis=0)
    lines = []
    for name, one in facts["ways"].items():
        means = [f"{np.mean(one['steps']):.1f}", *(f"{np.mean(one[key]):.4f}" for key in ("reward", "objective"))]
        minus = [signed(one["minus"][key]) if "minus" in one else "" for key in ("reward", "objective")]
        lines.append([name, *means, *minus])
    intro = (
        f"The oracle takes {oracle['steps']:.1f} steps on {oracle['images']} training images, at an objective of "
        f"{oracle['objective']:.4f}; the best number of steps for all of them is {oracle['single_steps']}, at "
        f"{oracle['single_objective']:.4f}. Log-likelihood of its decisions on images that the fit did not see: "
        f"{before:.2f} of the fresh TPM, {after:.2f} of the taught one."
    )
    head = " | steps | reward | objective | minus trained: reward | minus trained: objective"
    return "\n\n".join([intro, table(head, lines), origin(facts)])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=768, help="images that the oracle makes with each schedule")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    changes, kept = [*EXPERIMENT.overrides, *chosen.set], chosen.file.parent / "ablations"
    found = [one_seed(changes, seed, chosen.images, chosen.runs, kept) for seed in chosen.seeds]
    recipe = recipe_for(changes, chosen.seeds[0], chosen.runs)
    return results_of(
        chosen,
        recipe,
        len(found[0]["taught"]),
        changes,
        oracle=found[0]["oracle"],
        likelihood=[seed["likelihood"] for seed in found],
        ways={name: way(found, name, recipe.reward.gamma) for name in WAYS},
    )
