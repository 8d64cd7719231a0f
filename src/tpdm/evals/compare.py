"""Policies side by side: the same prompts, the same initial noise, the same code path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tpdm.core.paths import shifted
from tpdm.evals.judge import Judge, to_bytes
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import default_times
from tpdm.rewards.base import Reward
from tpdm.rewards.composite import judge
from tpdm.rollout import PipelineSampler
from tpdm.schedules import FixedTimes
from tpdm.types import Policy

SHIFTS = (0.6, 1.0, 1.5, 2.2, 3.3)


@dataclass(frozen=True)
class Task:
    """What every policy is asked for.

    Attributes:
        prompts, seeds: one image each.
        pipe, arguments: the pipeline and the arguments of its call.
        reward: the training reward.
        judge: measures the reward knows nothing of; None where there is none.
        solver, max_steps, stop_below, batch: of the sampling.
        negatives: negative prompts, one for each prompt; None leaves the pipeline's own.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    pipe: Any
    arguments: dict[str, Any]
    reward: Reward
    judge: Judge | None
    solver: str = "euler"
    max_steps: int = 28
    stop_below: float = 0.01
    batch: int = 64
    negatives: Sequence[str] | None = None

    def first(self, count: int) -> Task:
        """The same task on its first ``count`` prompts."""
        negatives = None if self.negatives is None else self.negatives[:count]
        return replace(self, prompts=self.prompts[:count], seeds=self.seeds[:count], negatives=negatives)


@dataclass(frozen=True)
class Result:
    """What one policy did.

    Attributes:
        rows: one dictionary per image: policy, index, prompt, seed, steps, times, score, ``parts`` (a composite's raw
            scores by key; not there for any other reward), and the judge's measures.
        images_BHWC: uint8.
    """

    name: str
    rows: list[dict[str, Any]]
    images_BHWC: np.ndarray

    def has(self, key: str) -> bool:
        """Whether the images were measured so."""
        return key in self.rows[0]

    def column(self, key: str) -> np.ndarray:
        """One number per image."""
        return np.asarray([row[key] for row in self.rows], dtype=np.float64)


def run_policy(name: str, policy: Policy, task: Task) -> Result:
    """Makes and judges one image per prompt of the task."""
    limit = policy.steps if isinstance(policy, FixedTimes) else task.max_steps
    rows: list[dict[str, Any]] = []
    images: list[np.ndarray] = []
    bar = tqdm(total=len(task.prompts), desc=name, unit="image", leave=False, dynamic_ncols=True)
    for start in range(0, len(task.prompts), task.batch):
        part = slice(start, start + task.batch)
        prompts, seeds = task.prompts[part], task.seeds[part]
        pipeline = attach(
            task.pipe,
            _rows_of(policy, part),
            solver=task.solver,
            max_steps=limit,
            stop_below=task.stop_below,
        )
        negatives = None if task.negatives is None else task.negatives[part]
        generated = PipelineSampler(pipeline, task.batch, task.arguments)(prompts, seeds, negatives=negatives)
        scored = judge(task.reward, generated.images_B3HW, prompts)
        measures = task.judge(generated.images_B3HW, prompts) if task.judge else [{} for _ in prompts]
        for i, prompt in enumerate(prompts):
            rows.append(
                {
                    "policy": name,
                    "index": start + i,
                    "prompt": prompt,
                    "seed": seeds[i],
                    "steps": generated.steps[i],
                    "times": [round(t, 6) for t in generated.times[i]],
                    "score": float(scored.score_B[i]),
                    **({"parts": {key: float(s[i]) for key, s in scored.parts.items()}} if scored.parts else {}),
                    **measures[i],
                }
            )
        images.append(to_bytes(generated.images_B3HW))
        bar.update(len(prompts))
    bar.close()
    return Result(name, rows, np.concatenate(images))


def _rows_of(policy: Policy, part: slice) -> Policy:
    """A list of schedules, one per image, is cut to the images of a batch."""
    if isinstance(policy, FixedTimes) and len(policy.lists) > 1:
        return FixedTimes(policy.lists[part])
    return policy


def default_schedule(pipe: Any, steps: int, arguments: Mapping[str, Any]) -> FixedTimes:
    """The pipeline's own schedule of so many steps, when it is called with these arguments."""
    return FixedTimes(default_times(pipe, steps, arguments))


def best_shift(task: Task, steps: int) -> tuple[float, dict[float, float]]:
    """The shift whose fixed grid of so many steps scores best on the task, and the mean score of each."""
    scores = {
        shift: float(
            run_policy(f"shift {shift}", FixedTimes(shifted(steps, shift).tolist()), task).column("score").mean()
        )
        for shift in SHIFTS
    }
    return max(scores, key=lambda s: scores[s]), scores


def mean_schedule(result: Result) -> FixedTimes:
    """One schedule for every image: the mean of a policy's own, at its mean number of steps.

    Each schedule is read as a curve of time against the share of its steps that are done; curves are averaged and
    sampled at the rounded mean number of steps.
    """
    steps = max(1, round(float(result.column("steps").mean())))
    grid = np.linspace(0, 1, steps + 1)
    curves = [np.interp(grid, np.linspace(0, 1, len(r["times"])), r["times"]) for r in result.rows]
    mean = np.mean(curves, axis=0)
    mean[-1] = 0.0
    return FixedTimes(mean.tolist())


def shuffled_schedules(result: Result, seed: int = 0) -> FixedTimes:
    """The policy's own schedules, dealt to other images: what is left when nobody looks at the image."""
    order = torch.randperm(len(result.rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return FixedTimes([_strict(result.rows[i]["times"]) for i in order])


def _strict(times: Sequence[float]) -> list[float]:
    return [t for i, t in enumerate(times) if i == 0 or t < times[i - 1]]


def difficulty(task: Task, shift: float, grid: Sequence[int], share: float) -> tuple[np.ndarray, float, list[Result]]:
    """How many steps the best fixed schedule needs for each image.

    The smallest N of the grid from which on the score stays within a margin of the best score that the image reaches
    at any N. The margin is ``share`` of the mean (over images) range of scores over the grid, so that it means the
    same for every reward.

    Returns:
        (steps needed per image, the margin, the results at every N).
    """
    results = [run_policy(f"fixed {n}", FixedTimes(shifted(n, shift).tolist()), task) for n in grid]
    score_NB = np.stack([r.column("score") for r in results])
    margin = share * float(np.ptp(score_NB, axis=0).mean())
    good_NB = score_NB >= score_NB.max(axis=0) - margin
    stays_NB = np.flip(np.logical_and.accumulate(np.flip(good_NB, axis=0), axis=0), axis=0)
    # Where even the longest grid is not within the margin, it is the longest.
    first_B = np.where(stays_NB.any(axis=0), stays_NB.argmax(axis=0), len(grid) - 1)
    return np.asarray(grid)[first_B], margin, results
