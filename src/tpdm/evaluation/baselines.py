"""The schedules that a learned one has to beat, each made without looking at the image."""

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
KARRAS_RANGE = (0.02, 50.0)  # of sigma; EDM's own reaches so far down that few steps are left for the picture
DIAL_TRIES = 400  # gammas over the range, among which a tuned schedule of N steps is looked for


def default_schedule(pipe: Any, steps: int, arguments: Mapping[str, Any]) -> FixedSchedule:
    """The pipeline's own schedule of so many steps, when it is called with these arguments."""
    return FixedSchedule(default_times(pipe, steps, arguments))


def hand_designed_schedules(pipe: Any, steps: int, arguments: Mapping[str, Any]) -> dict[str, FixedSchedule]:
    """Hand-made schedules of so many steps, by name: the pipeline's own, shifted ones, and Karras's."""
    grids = {"default": default_schedule(pipe, steps, arguments)}
    grids |= {f"shift {shift}": FixedSchedule(shifted(steps, shift).tolist()) for shift in SHIFTS}
    if steps > 1:
        low, high = KARRAS_RANGE
        grids |= {f"karras {rho}": FixedSchedule(karras(steps, rho, low, high).tolist()) for rho in (3.0, 7.0)}
    return grids


def best_hand_designed(
    tuning: EvalTask, steps: int, store: Store | None = None
) -> tuple[str, FixedSchedule, dict[str, float]]:
    """The schedule of the family that scores best on the tuning task: its name, itself, and the score of each."""
    grids = hand_designed_schedules(tuning.pipe, steps, tuning.arguments)
    scores = {
        name: float(evaluate_policy(f"tuning {name} {steps}", grid, tuning, store).column("score").mean())
        for name, grid in grids.items()
    }
    best = max(scores, key=lambda name: scores[name])
    return best, grids[best], scores


def tuned_schedules(policy: TimePredictionModule) -> dict[int, FixedSchedule]:
    """The schedules of a TPM that sees only the time, by number of steps: no image is needed to know them.

    A dial gives one for every number of steps within its reach: that of the gamma in the middle of those that take so
    many.

    Raises:
        ConfigError: the TPM looks at images.
    """
    if not policy.shape.time_only:
        raise ConfigError("got a TPM that looks at images, expected one trained with tpm.time_only=true; give that.")
    dial = policy.shape.gamma_range
    gammas = [None] if dial is None else spread_gammas(DIAL_TRIES, *dial)
    by_steps: dict[int, list[list[float]]] = {}
    for times in _unrolled(policy, gammas):
        by_steps.setdefault(len(times) - 1, []).append(times)
    return {n: FixedSchedule(found[len(found) // 2]) for n, found in sorted(by_steps.items())}


def _unrolled(policy: TimePredictionModule, gammas: Sequence[float | None]) -> list[list[float]]:
    """The schedules that a TPM without eyes follows, one for each gamma, by the stepper's own rules."""
    trained = policy.artifact
    assert trained is not None
    given = [gamma for gamma in gammas if gamma is not None]
    stepper = Stepper(
        condition_policy(policy, len(gammas), given or None),
        Euler(),
        images=len(gammas),
        max_steps=trained.max_steps,
        stop_below=trained.stop_below,
    )
    still = torch.zeros(len(gammas), 1, dtype=torch.float32, device="cpu")
    while not stepper.done:
        stepper.advance(still, still, None)
    return stepper.times


def mix_schedules(name: str, pair: Sequence[EvalResult], steps: float) -> EvalResult:
    """What a mixture of two fixed schedules would give at a mean number of steps between theirs, image by image.

    Fixed schedules have whole numbers of steps and a learned one has not. Drawing each image's schedule from the two
    with the odds that give the mean has these expected values.
    """
    fewer, more = pair
    low, high = fewer.rows[0]["steps"], more.rows[0]["steps"]
    share = 0.0 if high == low else (steps - low) / (high - low)
    rows = []
    for a, b in zip(fewer.rows, more.rows, strict=True):
        numbers = [k for k, v in a.items() if isinstance(v, float | int) and k not in ("index", "seed") and k in b]
        mixed = {k: (1 - share) * a[k] + share * b[k] for k in numbers}
        # Of an expected score neither a quantile nor who wins can be told.
        both = {"outcomes": [a["score"], b["score"]], "odds": [1 - share, share]}
        rows.append({**a, **mixed, **both, "policy": name, "times": []})
    return EvalResult(name, rows)


def random_step_counts(result: EvalResult, grids: Mapping[int, FixedSchedule], seed: int = 0) -> FixedSchedule:
    """The policy's own numbers of steps dealt to other images, each spaced by the best hand-made schedule of so many.

    What is left when neither the spacing nor the choice of image is the policy's own.
    """
    order = _order(result, seed)
    return FixedSchedule([grids[result.rows[i]["steps"]].lists[0] for i in order])


def mean_schedule(result: EvalResult, steps: int | None = None) -> FixedSchedule:
    """One schedule for every image: the mean of a policy's own, at its mean number of steps or another one.

    Each schedule is read as a curve of time against the share of its steps that are done; curves are averaged and
    sampled at that number of steps.
    """
    steps = steps or max(1, round(float(result.column("steps").mean())))
    grid = np.linspace(0, 1, steps + 1)
    curves = [np.interp(grid, np.linspace(0, 1, len(r["times"])), r["times"]) for r in result.rows]
    mean = np.mean(curves, axis=0)
    mean[-1] = 0.0
    return FixedSchedule(mean.tolist())


def shuffled_schedules(result: EvalResult, seed: int = 0) -> FixedSchedule:
    """The policy's own schedules, dealt to other images: what is left when nobody looks at the image."""
    order = _order(result, seed)
    return FixedSchedule([_strict(result.rows[i]["times"]) for i in order])


def _order(result: EvalResult, seed: int) -> list[int]:
    draw = torch.Generator("cpu").manual_seed(seed)
    order: list[int] = torch.randperm(len(result.rows), generator=draw, dtype=torch.int64, device="cpu").tolist()
    return order


def _strict(times: Sequence[float]) -> list[float]:
    return [t for i, t in enumerate(times) if i == 0 or t < times[i - 1]]


def difficulty(results: Sequence[EvalResult], grid: Sequence[int], share: float) -> tuple[np.ndarray, float]:
    """How many steps the best fixed schedule needs for each image.

    The smallest N of the grid from which on the score stays within a margin of the best score that the image reaches
    at any N. The margin is ``share`` of the mean (over images) range of scores over the grid, so that it means the
    same for every reward.

    Args:
        results: of the fixed schedule of every N of the grid, on the same images.
        grid: rising.
        share: of the range.

    Returns:
        (steps needed per image, the margin).
    """
    score_NB = np.stack([r.column("score") for r in results])
    margin = share * float(np.ptp(score_NB, axis=0).mean())
    good_NB = score_NB >= score_NB.max(axis=0) - margin
    stays_NB = np.flip(np.logical_and.accumulate(np.flip(good_NB, axis=0), axis=0), axis=0)
    # Where even the longest grid is not within the margin, it is the longest.
    first_B = np.where(stays_NB.any(axis=0), stays_NB.argmax(axis=0), len(grid) - 1)
    return np.asarray(grid)[first_B], margin
