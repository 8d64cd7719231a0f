"""Evaluate policies on the same prompts and the same initial noise."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from tpdm.core.io import to_uint8
from tpdm.core.types import Policy
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.statistics import samples_of
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule
from tpdm.rewards.base import Reward, checked_scores
from tpdm.rewards.composite import compute_rewards
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.samplers import PipelineSampler


@dataclass(frozen=True)
class EvalTask:
    """Images that every policy generates, and how they are scored.

    Attributes:
        prompts: One prompt per image. Images of one prompt are adjacent.
        seeds: One seed per image.
        pipe: Diffusion pipeline.
        arguments: Arguments of the pipeline's call.
        reward: Reward of the training.
        judge: Measures that are independent of the reward. None measures nothing else.
        solver: Name of the ODE solver.
        max_steps: Maximum number of steps per image, >= 1.
        stop_below: Time in [0, 1) below which an image is finished.
        batch: Maximum number of images per batch, >= 1.
        negatives: One negative prompt per image. None uses the default of the pipeline.
        judges: Held-out rewards by name. Rows contain their scores under this name.
        decode_batch: Maximum number of images that are decoded at once. None decodes the batch.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    pipe: Any
    arguments: dict[str, Any]
    reward: Reward
    judge: ImageScorer | None
    solver: str = "euler"
    max_steps: int = 28
    stop_below: float = 0.01
    batch: int = 64
    negatives: Sequence[str] | None = None
    judges: Mapping[str, Reward] = field(default_factory=dict)
    decode_batch: int | None = None

    def first(self, count: int) -> EvalTask:
        """Return the same task for the first ``count`` prompts, with all images of each."""
        images = count * samples_of(self.prompts)
        negatives = None if self.negatives is None else self.negatives[:images]
        return replace(self, prompts=self.prompts[:images], seeds=self.seeds[:images], negatives=negatives)


@dataclass(frozen=True)
class EvalResult:
    """Results of one policy.

    Attributes:
        name: Name of the policy.
        rows: One dictionary per image: policy, index, prompt, seed, steps, times, score, the judges' measures, and
            seconds (its share of the time of its batch). With a composite reward, ``parts`` are the raw scores by
            key. Rows of a mixture of two policies contain expected values, and ``outcomes`` and ``odds``: both
            scores and their probabilities.

    Example:
        >>> result = EvalResult("static-4", [{"steps": 4, "score": 0.5}, {"steps": 4, "score": 0.7}])
        >>> result.column("score").tolist()
        [0.5, 0.7]
    """

    name: str
    rows: list[dict[str, Any]]

    def has(self, key: str) -> bool:
        """Return whether the rows have this measure."""
        return key in self.rows[0]

    def column(self, key: str) -> np.ndarray:
        """Return one number, or list of numbers, per image."""
        return np.asarray([row[key] for row in self.rows], dtype=np.float64)

    def outcomes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the possible scores (B, K) of each image, and their probabilities. K is 1 unless this is a mixture."""
        if not self.has("outcomes"):
            score_B1 = self.column("score")[:, None]
            return score_B1, np.ones_like(score_B1)
        return self.column("outcomes"), self.column("odds")


def evaluate_policy(
    name: str,
    policy: Policy,
    task: EvalTask,
    store: Store | None = None,
    *,
    gamma: float | None = None,
    pictures: bool = False,
) -> EvalResult:
    """Generate and score all images of a task with one policy.

    Args:
        name: Name of the policy, also in the store.
        policy: Any policy. A fixed schedule per image must have one schedule for each image of the task.
        task: Images to generate.
        store: Store with the rows of images that are finished. New rows are added to it. None stores nothing.
        gamma: Gamma of a gamma-conditioned TPM, in (0, 1). None uses the gamma of its artifact.
        pictures: Whether the store keeps the images.

    Returns:
        One row per image, in the order of the task.
    """
    with store.held(name) if store else nullcontext():
        return _run(name, policy, task, store, gamma, pictures)


def _run(
    name: str, policy: Policy, task: EvalTask, store: Store | None, gamma: float | None, pictures: bool
) -> EvalResult:
    limit = policy.fixed_steps or task.max_steps
    rows: list[dict[str, Any]] = store.rows(name)[: len(task.prompts)] if store else []
    bar = tqdm(total=len(task.prompts), initial=len(rows), desc=name, unit="image", leave=False, dynamic_ncols=True)
    size = task.batch
    while len(rows) < len(task.prompts):
        part = slice(len(rows), len(rows) + size)
        pipeline = attach(
            task.pipe, _rows_of(policy, part), solver=task.solver, max_steps=limit, stop_below=task.stop_below
        )
        sampler = PipelineSampler(pipeline, size, task.arguments, decode_batch=task.decode_batch)
        made, new = _judged(name, sampler, task, part, gamma)
        size = sampler.in_flight  # a batch that ran out of memory stays smaller
        if store:
            store.add(name, new, to_uint8(made) if pictures else None)
        rows += new
        bar.update(len(new))
    bar.close()
    return EvalResult(name, rows)


def _judged(
    name: str, sampler: PipelineSampler, task: EvalTask, part: slice, gamma: float | None
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return images (B, 3, H, W) of a part of the task, and their rows."""
    prompts, seeds = task.prompts[part], task.seeds[part]
    began = time.monotonic()
    negatives = None if task.negatives is None else task.negatives[part]
    gammas = None if gamma is None else [gamma] * len(prompts)
    generated = sampler(SampleRequest(prompts, seeds, negatives=negatives, gammas=gammas))
    seconds = round((time.monotonic() - began) / len(prompts), 5)  # time of generation per image, without scoring
    images = generated.images_B3HW
    scored = compute_rewards(task.reward, images, prompts)
    parts = [{key: float(s[i]) for key, s in scored.parts.items()} for i in range(len(prompts))]
    others = {label: checked_scores(reward, images, prompts).tolist() for label, reward in task.judges.items()}
    measures = task.judge(images, prompts) if task.judge else [{} for _ in prompts]
    return images, [
        {
            "policy": name,
            "index": part.start + i,
            "prompt": prompt,
            "seed": seeds[i],
            "steps": generated.steps[i],
            "times": [round(t, 6) for t in generated.times[i]],
            "score": float(scored.score_B[i]),
            **({"parts": parts[i]} if parts[i] else {}),
            **{key: values[i] for key, values in others.items()},
            **measures[i],
            "seconds": seconds,
        }
        for i, prompt in enumerate(prompts)
    ]


def _rows_of(policy: Policy, part: slice) -> Policy:
    """Return the policy for the images of a batch, if it has one schedule per image."""
    if isinstance(policy, FixedSchedule) and len(policy.lists) > 1:
        return FixedSchedule(policy.lists[part])
    return policy


class ImageScorer(Protocol):
    """Measure images against their prompts, independently of the training reward."""

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[dict[str, float]]:
        """Return one dictionary of measures per image. All have the same names."""
