"""Baselines: fixed schedules, and schedules made from a TPM's own without its choice of image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tpdm.core.errors import ConfigError
from tpdm.core.grids import karras, shifted
from tpdm.core.solvers import Euler
from tpdm.core.stepper import Stepper
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.runner import EvalResult, EvalTask, evaluate_policy
from tpdm.pipelines.probe import default_times
from tpdm.policies.conditioned import condition_policy
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.gamma import spread_gammas
from tpdm.policies.tpm import TimePredictionModule

SHIFTS = (0.6, 1.0, 1.5, 2.2, 3.3)
KARRAS_RANGE = (0.02, 50.0)  # range of sigma; EDM's own lower end is so low that few steps remain for the image
GAMMA_TRIES = 400  # number of gammas over the range that are tried to find a schedule of N steps


def default_schedule(pipe: Any, steps: int, arguments: Mapping[str, Any]) -> FixedSchedule:
    """Return the pipeline's own schedule of ``steps`` steps for these arguments of its call."""
    return FixedSchedule(default_times(pipe, steps, arguments))


def hand_designed_schedules(pipe: Any, steps: int, arguments: Mapping[str, Any]) -> dict[str, FixedSchedule]:
    """Return hand-designed schedules of ``steps`` steps by name: the pipeline's own, shifted ones, and Karras's."""
    grids = {"default": default_schedule(pipe, steps, arguments)}
    grids |= {f"shift {shift}": FixedSchedule(shifted(steps, shift).tolist()) for shift in SHIFTS}
    if steps > 1:
        low, high = KARRAS_RANGE
        grids |= {f"karras {rho}": FixedSchedule(karras(steps, rho, low, high).tolist()) for rho in (3.0, 7.0)}
    return grids


def best_hand_designed(
    tuning: EvalTask, steps: int, store: Store | None = None
) -> tuple[str, FixedSchedule, dict[str, float]]:
    """Return the hand-designed schedule that scores best on the tuning task: its name, itself, and all mean scores."""
    grids = hand_designed_schedules(tuning.pipe, steps, tuning.arguments)
    scores = {
        name: float(evaluate_policy(f"tuning {name} {steps}", grid, tuning, store).column("score").mean())
        for name, grid in grids.items()
    }
    best = max(scores, key=lambda name: scores[name])
    return best, grids[best], scores


def tuned_schedules(policy: TimePredictionModule) -> dict[int, FixedSchedule]:
    """Return the schedules of a TPM that reads only the time, by number of steps.

    A gamma-conditioned TPM has one schedule for every number of steps in its range. If several gammas give the same
    number of steps, the middle one is used.

    Raises:
        ConfigError: If the TPM reads image features.
    """
    if not policy.shape.time_only:
        raise ConfigError(
            "evaluation.tuned_baseline is a TPM that reads image features. It must be trained with tpm.time_only=true. "
            "Use such a TPM."
        )
    gamma_range = policy.shape.gamma_range
    gammas = [None] if gamma_range is None else spread_gammas(GAMMA_TRIES, *gamma_range)
    by_steps: dict[int, list[list[float]]] = {}
    for times in _unrolled(policy, gammas):
        by_steps.setdefault(len(times) - 1, []).append(times)
    return {n: FixedSchedule(options[len(options) // 2]) for n, options in sorted(by_steps.items())}


def _unrolled(policy: TimePredictionModule, gammas: Sequence[float | None]) -> list[list[float]]:
    """Return the times of a time-only TPM for each gamma, computed by the stepper."""
    trained = policy.artifact
    assert trained is not None
    numbers = [gamma for gamma in gammas if gamma is not None]
    stepper = Stepper(
        condition_policy(policy, len(gammas), numbers or None),
        Euler(),
        images=len(gammas),
        max_steps=trained.max_steps,
        stop_below=trained.stop_below,
    )
    latents = torch.zeros(len(gammas), 1, dtype=torch.float32, device="cpu")
    while not stepper.done:
        stepper.advance(latents, latents, None)
    return stepper.times


def mix_schedules(name: str, pair: Sequence[EvalResult], steps: float) -> EvalResult:
    """Return the expected results of a mixture of two fixed schedules at a mean number of steps between theirs.

    A fixed schedule has an integer number of steps. The mixture draws each image's schedule from the two, with the
    probabilities that give the mean number of steps.
    """
    fewer, more = pair
    low, high = fewer.rows[0]["steps"], more.rows[0]["steps"]
    share = 0.0 if high == low else (steps - low) / (high - low)
    rows = []
    for a, b in zip(fewer.rows, more.rows, strict=True):
        numbers = [k for k, v in a.items() if isinstance(v, float | int) and k not in ("index", "seed") and k in b]
        mixed = {k: (1 - share) * a[k] + share * b[k] for k in numbers}
        # Quantiles and win rates need both outcomes, not the expected score.
        both = {"outcomes": [a["score"], b["score"]], "odds": [1 - share, share]}
        rows.append({**a, **mixed, **both, "policy": name, "times": []})
    return EvalResult(name, rows)


def random_step_counts(result: EvalResult, grids: Mapping[int, FixedSchedule], seed: int = 0) -> FixedSchedule:
    """Return hand-designed schedules with the policy's numbers of steps, assigned to other images.

    This baseline keeps neither the spacing of the policy nor its choice of image.
    """
    order = _order(result, seed)
    return FixedSchedule([grids[result.rows[i]["steps"]].lists[0] for i in order])


def mean_schedule(result: EvalResult, steps: int | None = None) -> FixedSchedule:
    """Return the mean of a policy's schedules, at its mean number of steps or at ``steps``.

    Each schedule is a curve of time against the fraction of its steps. The curves are averaged and sampled at that
    number of steps.
    """
    steps = steps or max(1, round(float(result.column("steps").mean())))
    grid = np.linspace(0, 1, steps + 1)
    curves = [np.interp(grid, np.linspace(0, 1, len(r["times"])), r["times"]) for r in result.rows]
    mean = np.mean(curves, axis=0)
    mean[-1] = 0.0
    return FixedSchedule(mean.tolist())


def shuffled_schedules(result: EvalResult, seed: int = 0) -> FixedSchedule:
    """Return the policy's schedules, assigned to other images."""
    order = _order(result, seed)
    return FixedSchedule([_strict(result.rows[i]["times"]) for i in order])


def _order(result: EvalResult, seed: int) -> list[int]:
    generator = torch.Generator("cpu").manual_seed(seed)
    order: list[int] = torch.randperm(len(result.rows), generator=generator, dtype=torch.int64, device="cpu").tolist()
    return order


def _strict(times: Sequence[float]) -> list[float]:
    return [t for i, t in enumerate(times) if i == 0 or t < times[i - 1]]


def difficulty(results: Sequence[EvalResult], grid: Sequence[int], share: float) -> tuple[np.ndarray, float]:
    """Return how many steps the best fixed schedule needs for each image.

    This is the smallest N of the grid from which the score stays within a margin of the image's best score. The margin
    is ``share`` of the range of scores over the grid, averaged over images, so that it applies to every reward.

    Args:
        results: Results of the fixed schedule of every N of the grid, on the same images.
        grid: Numbers of steps, increasing.
        share: Margin as a fraction of the range.

    Returns:
        (steps needed per image, margin).
    """
    score_NB = np.stack([r.column("score") for r in results])
    margin = share * float(np.ptp(score_NB, axis=0).mean())
    good_NB = score_NB >= score_NB.max(axis=0) - margin
    stays_NB = np.flip(np.logical_and.accumulate(np.flip(good_NB, axis=0), axis=0), axis=0)
    # If no schedule is within the margin, the longest one counts.
    first_B = np.where(stays_NB.any(axis=0), stays_NB.argmax(axis=0), len(grid) - 1)
    return np.asarray(grid)[first_B], margin
