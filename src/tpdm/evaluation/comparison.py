"""A learned schedule and its opponents at the same mean number of steps, every run kept in the store."""

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

TOLERANCES = (1e-5, 3e-1)  # of error control: hundreds of steps, and fewer than four
BISECTIONS = 9
FIRST_ORDER = "euler"  # what the schedulers do that pipelines of the flow path come with; DDIM on the other path


class BaselineComparison:
    """Runs the opponents that are asked for, each once.

    Args:
        test: what is compared.
        tuning: what controls are chosen on.
        policy: the TPM.
        tuned: one that sees only the time; None where there is none.
        store: of the evaluation.
        controls: of what does not depend on the TPM; may be shared with other evaluations.

    Attributes:
        chosen: for every number of steps, the hand-made schedule that was best on the tuning task.
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
        """The TPM's gamma at a quality in [0, 1]."""
        assert self.policy.artifact is not None
        assert self.policy.artifact.gamma_steps is not None
        gammas, steps = zip(*self.policy.artifact.gamma_steps, strict=True)
        return quality_to_gamma(quality, gammas, steps)

    def learned(self, name: str, gamma: float | None = None) -> EvalResult:
        """The TPM; with a dial at this gamma, or at its own."""
        return evaluate_policy(name, self.policy, self.test, self.store, gamma=gamma, pictures=True)

    def default(self, steps: int) -> EvalResult:
        """The pipeline's own schedule."""
        schedule = default_schedule(self.test.pipe, steps, self.test.arguments)
        return evaluate_policy(f"static-{steps}", schedule, self.test, self.store, pictures=True)

    def default_first_order(self, steps: int) -> EvalResult:
        """The pipeline's own schedule with a solver of first order, where the task has one of higher order."""
        task = replace(self.test, solver=FIRST_ORDER)
        schedule = default_schedule(task.pipe, steps, task.arguments)
        return evaluate_policy(f"static-{steps}, {FIRST_ORDER}", schedule, task, self.baselines)

    def best_grid(self, steps: int, task: EvalTask | None = None) -> EvalResult:
        """The hand-made schedule of so many steps that scored best on the tuning task."""
        if steps not in self._best:
            self.chosen[steps], self._best[steps] = best_hand_designed(self.tuning, steps, self.baselines)[:2]
        return evaluate_policy(f"best grid {steps}", self._best[steps], task or self.test, self.baselines)

    def baselines_at_nfe(self, steps: float) -> list[EvalResult]:
        """Fixed schedules at this mean number of steps: default, best hand-made, and tuned by the same training."""
        default = [self._default_bare(n) for n in neighboring_steps(steps)]
        tuned = self.tuned_at(steps)
        found = [mix_schedules("default, equal steps", default, steps), self.grid_at(steps)]
        return found if tuned is None else [*found, tuned]

    def grid_at(self, steps: float) -> EvalResult:
        """The best hand-made schedules around this mean number of steps."""
        return mix_schedules("best grid, equal steps", [self.best_grid(n) for n in neighboring_steps(steps)], steps)

    def tuned_at(self, steps: float) -> EvalResult | None:
        """The schedules tuned by the same training around this mean number of steps; None beyond their reach."""
        if not all(n in self._tuned for n in neighboring_steps(steps)):
            return None
        tuned = [evaluate_policy(f"tuned {n}", self._tuned[n], self.test, self.store) for n in neighboring_steps(steps)]
        return mix_schedules("tuned by the same training, equal steps", tuned, steps)

    def _default_bare(self, steps: int) -> EvalResult:
        schedule = default_schedule(self.test.pipe, steps, self.test.arguments)
        return evaluate_policy(f"default {steps}", schedule, self.test, self.baselines)

    def ablation_baselines(self, learned: EvalResult) -> list[EvalResult]:
        """What is left of the TPM when nobody looks at the image, and the classical way of looking at it."""
        steps = float(learned.column("steps").mean())
        own = evaluate_policy("tpdm (tuning)", self.policy, self.tuning, self.store)
        mean = [
            evaluate_policy(f"own mean {n}", mean_schedule(own, n), self.test, self.store)
            for n in neighboring_steps(steps)
        ]
        best = self.chosen[neighboring_steps(steps)[1]]
        grids = {n: self._hand_designed(n, best) for n in {row["steps"] for row in learned.rows}}
        return [
            mix_schedules("mean schedule of tpdm", mean, steps),
            self._run("shuffled schedules of tpdm", shuffled_schedules(learned)),
            self._run("its numbers of steps dealt at random, best grid", random_step_counts(learned, grids)),
            self.error_control(steps),
        ]

    def _hand_designed(self, steps: int, name: str) -> FixedSchedule:
        # A single step is the same in every family, and some have none.
        known = hand_designed_schedules(self.test.pipe, steps, self.test.arguments)
        return known.get(name, known["default"])

    def _run(self, name: str, schedule: FixedSchedule) -> EvalResult:
        return evaluate_policy(name, schedule, self.test, self.store)

    def error_control(self, steps: float) -> EvalResult:
        """Step-size control whose tolerance gives this mean number of steps on the tuning task, by bisection."""
        low, high = TOLERANCES
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high)
            tried = evaluate_policy(f"tuning error {middle:.6g}", ErrorControlled(middle), self.tuning, self.baselines)
            low, high = (middle, high) if float(tried.column("steps").mean()) > steps else (low, middle)
        policy = ErrorControlled(math.sqrt(low * high))
        return evaluate_policy("error control", policy, self.test, self.store)


def neighboring_steps(steps: float) -> tuple[int, int]:
    """The whole numbers of steps around a mean, at least 1."""
    return max(1, math.floor(steps)), max(1, math.ceil(steps))
