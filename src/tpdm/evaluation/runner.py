"""Policies side by side: the same prompts, the same initial noise, the same code path."""

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
    """What every policy is asked for.

    Attributes:
        prompts, seeds: one image each.
        pipe, arguments: the pipeline and the arguments of its call.
        reward: the training reward.
        judge: measures the reward knows nothing of; None where there is none.
        solver, max_steps, stop_below, batch: of the sampling.
        negatives: negative prompts, one for each prompt; None leaves the pipeline's own.
        judges: rewards that were not trained on, by the name under which each row has their score.
        decode_batch: images decoded at once; None decodes the batch.
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
        """The same task on its first ``count`` prompts, with all images of each."""
        images = count * samples_of(self.prompts)
        negatives = None if self.negatives is None else self.negatives[:images]
        return replace(self, prompts=self.prompts[:images], seeds=self.seeds[:images], negatives=negatives)


@dataclass(frozen=True)
class EvalResult:
    """What one policy did.

    Attributes:
        rows: one dictionary per image: policy, index, prompt, seed, steps, times, score, ``parts`` (a composite's raw
            scores by key; not there for any other reward), the judges' measures, and seconds: what it took to make, a
            share of its batch's. Those of a mixture of two policies have the expected values, and ``outcomes`` and
            ``odds``: both scores, and the chance of each.
    """

    name: str
    rows: list[dict[str, Any]]

    def has(self, key: str) -> bool:
        """Whether the images were measured so."""
        return key in self.rows[0]

    def column(self, key: str) -> np.ndarray:
        """One number, or list of numbers, per image."""
        return np.asarray([row[key] for row in self.rows], dtype=np.float64)

    def outcomes(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B, K) that each image may have, and their odds: one for certain, but for a mixture."""
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
    """Makes and judges one image per prompt of the task.

    Args:
        name: of the policy; in the store too.
        policy: any; a list of schedules has one for each image of the task.
        task: what to make.
        store: has the images that were judged before, and gets the others; None keeps nothing.
        gamma: of a TPM with a dial; None takes the one of its artifact.
        pictures: whether the store keeps the images.
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
        size = sampler.in_flight  # what did not fit once is not tried again
        if store:
            store.add(name, new, to_uint8(made) if pictures else None)
        rows += new
        bar.update(len(new))
    bar.close()
    return EvalResult(name, rows)


def _judged(
    name: str, sampler: PipelineSampler, task: EvalTask, part: slice, gamma: float | None
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images (B, 3, H, W) of a part of the task, and their rows."""
    prompts, seeds = task.prompts[part], task.seeds[part]
    began = time.monotonic()
    negatives = None if task.negatives is None else task.negatives[part]
    gammas = None if gamma is None else [gamma] * len(prompts)
    generated = sampler(SampleRequest(prompts, seeds, negatives=negatives, gammas=gammas))
    seconds = round((time.monotonic() - began) / len(prompts), 5)  # of making, as a share of the batch; judging is ours
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
    """A list of schedules, one per image, is cut to the images of a batch."""
    if isinstance(policy, FixedSchedule) and len(policy.lists) > 1:
        return FixedSchedule(policy.lists[part])
    return policy


class ImageScorer(Protocol):
    """Measures images against their prompts, independently of the training reward."""

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[dict[str, float]]:
        """One dictionary of named measures per image; the same names for all."""
