"""Evaluates the baselines of a TPM at the TPM's mean number of steps."""

from __future__ import annotations

import math
from dataclasses import replace

from tpdm.evaluation.baselines import (
    best_hand_designed,
    default_schedule,
    hand_designed_schedules,
    mean_schedule,
    mix_schedules,
    random_step_counts,
    shuffled_schedules,
    tuned_schedules,
)
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.runner import EvalResult, EvalTask, evaluate_policy
from tpdm.policies.error_control import ErrorControlled
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.gamma import quality_to_gamma
from tpdm.policies.tpm import TimePredictionModule

TOLERANCES = (1e-5, 3e-1)  # tolerances of error control: the first gives hundreds of steps, the last fewer than 4
BISECTIONS = 9
FIRST_ORDER = "euler"  # default solver of flow pipelines. On a variance-preserving path it is DDIM.


class BaselineComparison:
    """Evaluates the requested baselines, each once.

    Args:
        test: Task of the comparison.
        tuning: Task on which baselines are selected.
        policy: The TPM.
        tuned: A TPM that reads only the time, or None.
        store: Store of the evaluation.
        baselines: Store of results that do not depend on the TPM. Evaluations may share it.

    Attributes:
        chosen: Name of the hand-designed schedule that was best on the tuning task, by number of steps.
    """

    def __init__(
        self,
        test: EvalTask,
        tuning: EvalTask,
        policy: TimePredictionModule,
        tuned: TimePredictionModule | None,
        store: Store,
        baselines: Store,
    ) -> None:
        self.test, self.tuning, self.policy, self.store, self.baselines = test, tuning, policy, store, baselines
        self._tuned = {} if tuned is None else tuned_schedules(tuned)
        self.chosen: dict[int, str] = {}
        self._best: dict[int, FixedSchedule] = {}

    def gamma(self, quality: float) -> float:
        """Return the TPM's gamma at a quality in [0, 1]."""
        assert self.policy.artifact is not None
        assert self.policy.artifact.gamma_steps is not None
        gammas, steps = zip(*self.policy.artifact.gamma_steps, strict=True)
        return quality_to_gamma(quality, gammas, steps)

    def learned(self, name: str, gamma: float | None = None) -> EvalResult:
        """Evaluate the TPM at a gamma. Default: its own."""
        return evaluate_policy(name, self.policy, self.test, self.store, gamma=gamma, pictures=True)

    def default(self, steps: int) -> EvalResult:
        """Evaluate the pipeline's own schedule."""
        schedule = default_schedule(self.test.pipe, steps, self.test.arguments)
        return evaluate_policy(f"static-{steps}", schedule, self.test, self.store, pictures=True)

    def default_first_order(self, steps: int) -> EvalResult:
        """Evaluate the pipeline's own schedule with the first-order solver."""
        task = replace(self.test, solver=FIRST_ORDER)
        schedule = default_schedule(task.pipe, steps, task.arguments)
        return evaluate_policy(f"static-{steps}, {FIRST_ORDER}", schedule, task, self.baselines)

    def best_grid(self, steps: int, task: EvalTask | None = None) -> EvalResult:
        """Evaluate the hand-designed schedule of ``steps`` steps that scored best on the tuning task."""
        return evaluate_policy(f"best grid {steps}", self._select(steps), task or self.test, self.baselines)

    def _select(self, steps: int) -> FixedSchedule:
        if steps not in self._best:
            self.chosen[steps], self._best[steps] = best_hand_designed(self.tuning, steps, self.baselines)[:2]
        return self._best[steps]

    def baselines_at_nfe(self, steps: float) -> list[EvalResult]:
        """Evaluate fixed schedules at this mean number of steps: default, hand-designed and tuned."""
        default = [self._default_bare(n) for n in neighboring_steps(steps)]
        tuned = self.tuned_at(steps)
        fixed = [mix_schedules("default, equal steps", default, steps), self.grid_at(steps)]
        return fixed if tuned is None else [*fixed, tuned]

    def grid_at(self, steps: float) -> EvalResult:
        """Mix the best hand-designed schedules around this mean number of steps."""
        return mix_schedules("best grid, equal steps", [self.best_grid(n) for n in neighboring_steps(steps)], steps)

    def tuned_at(self, steps: float) -> EvalResult | None:
        """Mix the schedules tuned by the same training around this mean number of steps. None if one is missing."""
        if not all(n in self._tuned for n in neighboring_steps(steps)):
            return None
        tuned = [evaluate_policy(f"tuned {n}", self._tuned[n], self.test, self.store) for n in neighboring_steps(steps)]
        return mix_schedules("tuned by the same training, equal steps", tuned, steps)

    def _default_bare(self, steps: int) -> EvalResult:
        schedule = default_schedule(self.test.pipe, steps, self.test.arguments)
        return evaluate_policy(f"default {steps}", schedule, self.test, self.baselines)

    def ablation_baselines(self, learned: EvalResult) -> list[EvalResult]:
        """Evaluate ablations of the TPM whose schedules do not depend on the image, and classical error control."""
        steps = float(learned.column("steps").mean())
        tuning = evaluate_policy("tpdm (tuning)", self.policy, self.tuning, self.store)
        mean = [
            evaluate_policy(f"own mean {n}", mean_schedule(tuning, n), self.test, self.store)
            for n in neighboring_steps(steps)
        ]
        more_steps = neighboring_steps(steps)[1]
        self._select(more_steps)
        grids = {n: self._hand_designed(n, self.chosen[more_steps]) for n in {row["steps"] for row in learned.rows}}
        return [
            mix_schedules("mean schedule of tpdm", mean, steps),
            self._run("shuffled schedules of tpdm", shuffled_schedules(learned)),
            self._run("its numbers of steps dealt at random, best grid", random_step_counts(learned, grids)),
            self.error_control(steps),
        ]

    def _hand_designed(self, steps: int, name: str) -> FixedSchedule:
        # With one step all schedules are equal, and some names do not exist.
        schedules = hand_designed_schedules(self.test.pipe, steps, self.test.arguments)
        return schedules.get(name, schedules["default"])

    def _run(self, name: str, schedule: FixedSchedule) -> EvalResult:
        return evaluate_policy(name, schedule, self.test, self.store)

    def error_control(self, steps: float) -> EvalResult:
        """Evaluate error control at this mean number of steps. Bisection on the tuning task finds its tolerance."""
        low, high = TOLERANCES
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high)
            result = evaluate_policy(f"tuning error {middle:.6g}", ErrorControlled(middle), self.tuning, self.baselines)
            low, high = (middle, high) if float(result.column("steps").mean()) > steps else (low, middle)
        policy = ErrorControlled(math.sqrt(low * high))
        return evaluate_policy("error control", policy, self.test, self.store)


def neighboring_steps(steps: float) -> tuple[int, int]:
    """Return the integers around a mean number of steps, at least 1.

    Example:
        >>> neighboring_steps(7.3), neighboring_steps(0.4)
        ((7, 8), (1, 1))
    """
    return max(1, math.floor(steps)), max(1, math.ceil(steps))
