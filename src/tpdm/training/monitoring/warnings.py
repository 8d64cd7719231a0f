"""Warnings about a run from its metrics, with the likely cause and the recipe key to change.

Each detector is a pure function of the rows so far. A resumed run and ``tpdm watch`` therefore give the same warnings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tpdm.config.recipe import Recipe

Row = Mapping[str, Any]
# A detector gets the rows of its kind, the newest last, and returns a message or None.
Detect = Callable[[Sequence[Row], Recipe], str | None]

WINDOW = 3  # consecutive rows with a sign, so that one noisy update gives no warning
RECOVERED_AFTER = 5  # rows without a sign until it is reported again
ENTROPY_FLOOR = -4.0  # nats, a Beta of standard deviation 0.004. Runs that learn stay above -2.
LARGEST_DEVIATION = 1e-3  # of a ratio from 1 before the first step. Rounding gives less than 1e-4.
NEARLY_ALL = 0.9  # share of images
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class TrainingWarning:
    """One warning.

    Attributes:
        sign: Name of the detector.
        update: Number of the update.
        message: The observation, its likely cause, and the key to change.
    """

    sign: str
    update: int
    message: str


@dataclass(frozen=True)
class Detector:
    """A function that looks for one sign in rows of one kind."""

    sign: str
    kind: Literal["train", "validation"]
    detect: Detect


class TrainingMonitor:
    """Runs all detectors on the rows of a run. Reports each sign once, and again after it was absent.

    Args:
        recipe: Recipe of the run.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._rows: dict[str, list[Row]] = {"train": [], "validation": []}
        self._absent: dict[str, int] = {}  # rows without the sign since it was reported

    def look(self, row: Row) -> list[TrainingWarning]:
        """Adds the next row and returns new warnings."""
        rows = self._rows[row["kind"]]
        rows.append(row)
        warnings = []
        for detector in DETECTORS:
            if detector.kind != row["kind"]:
                continue
            message = detector.detect(rows, self.recipe)
            if message is None:
                self._count_absent(detector.sign)
                continue
            if detector.sign not in self._absent:
                warnings.append(TrainingWarning(detector.sign, int(row["update"]), message))
            self._absent[detector.sign] = 0
        return warnings

    def _count_absent(self, sign: str) -> None:
        if sign in self._absent:
            self._absent[sign] += 1
            if self._absent[sign] >= RECOVERED_AFTER:
                del self._absent[sign]


def find_warnings(rows: Sequence[Row], recipe: Recipe) -> list[TrainingWarning]:
    """All warnings of a run, in the order in which they were reported.

    Args:
        rows: Rows of metrics.jsonl.
        recipe: Recipe of the run.
    """
    monitor = TrainingMonitor(recipe)
    return [warning for row in rows for warning in monitor.look(row)]


def entropy_collapse(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """The policy has become deterministic. Samples of a group no longer differ."""
    latest = [row["entropy"] for row in rows[-WINDOW:]]
    if len(latest) < WINDOW or max(latest) >= ENTROPY_FLOOR:
        return None
    return (
        f"The entropy of the decisions is {latest[-1]:.1f} nats. It was {rows[0]['entropy']:.1f} at first. The policy "
        "no longer explores. Set rl.entropy_weight to 0.001 to 0.01, or lower optimizer.lr."
    )


def silent_reward(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """All samples of every prompt have the same objective, so that the gradient is 0."""
    latest = rows[-WINDOW:]
    if len(latest) < WINDOW or any(row["silent_groups"] < 1 for row in latest):
        return None
    if latest[-1]["score_sd"] == 0:
        cause = f"The reward is {latest[-1]['score_mean']:g} for every image. Try reward.name on two different images."
    else:
        cause = (
            "The reward is too coarse, or all samples have the same schedule. Use a finer reward.name, or raise "
            "rl.samples_per_prompt."
        )
    return f"For {WINDOW} updates all samples of each prompt had the same objective. The gradient is then 0. {cause}"


def at_the_cap(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """Nearly every image takes the maximum number of steps."""
    cap = recipe.sampling.max_steps
    if cap == 1 or not _nearly_all_take(cap, rows):
        return None
    seen = f"For {WINDOW} updates nearly every image took all {cap} steps of sampling.max_steps."
    if recipe.reward.form == "additive":
        return f"{seen} The step penalty or the cap is too low. Raise reward.step_cost, or raise sampling.max_steps."
    offset_score = rows[-1]["score_mean"] + recipe.reward.offset
    if offset_score <= 0:
        return (
            f"{seen} The mean of score plus reward.offset is {offset_score:.3g}. Below 0 the discount rewards steps. "
            "Raise reward.offset until the sum is positive."
        )
    return f"{seen} The step penalty or the cap is too low. Lower reward.gamma, or raise sampling.max_steps."


def at_one_step(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """Nearly every image takes one step."""
    if recipe.sampling.max_steps == 1 or not _nearly_all_take(1, rows):
        return None
    key = "Lower reward.step_cost" if recipe.reward.form == "additive" else "Raise reward.gamma"
    return (
        f"For {WINDOW} updates nearly every image took one step. The step penalty is too high for this reward. {key}."
    )


def _nearly_all_take(steps: int, rows: Sequence[Row]) -> bool:
    latest = [row["steps_histogram"] for row in rows[-WINDOW:]]
    return len(latest) == WINDOW and all(h.get(str(steps), 0) >= NEARLY_ALL * sum(h.values()) for h in latest)


def ratio_off_one(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """The log-probability of decisions differs from the recorded one."""
    deviation = rows[-1]["ratio_deviation"]
    if deviation <= LARGEST_DEVIATION:
        return None
    return (
        f"A probability ratio differs from 1 by {deviation:.2g} before the first step of the update. It must be 1. "
        "Code outside tpdm may change the policy or its precision between rollout and update, for example with "
        "autocast. Remove it. Set backbone.dtype=fp32 to find out whether the backbone is the cause."
    )


def reward_without_judge(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """The reward rises while a judge falls, because the policy exploits the reward."""
    now = rows[-1]
    for name, judged in now.get("judges", {}).items():
        known = [row for row in rows if name in row.get("judges", {})]
        before = max(known, key=lambda row: row["judges"][name]["mean"])
        best = before["judges"][name]
        # For independent images. The images are the same each time, so that the true error is smaller.
        error = ((judged["sd"] ** 2 + best["sd"] ** 2) / sum(now["steps_histogram"].values())) ** 0.5
        falls = best["mean"] - judged["mean"] > STANDARD_ERRORS * error
        if falls and now["score_mean"] > before["score_mean"]:
            return (
                f"Since update {before['update']} the reward rose from {before['score_mean']:.4g} to "
                f"{now['score_mean']:.4g}, but the judge '{name}' fell from {best['mean']:.4g} to "
                f"{judged['mean']:.4g}, by more than {STANDARD_ERRORS:g} standard errors. The policy exploits the "
                "reward. Add the judge to reward.parts, or set rl.kl_weight."
            )
    return None


DETECTORS = (
    Detector("entropy", "train", entropy_collapse),
    Detector("silence", "train", silent_reward),
    Detector("cap", "train", at_the_cap),
    Detector("one step", "train", at_one_step),
    Detector("ratio", "train", ratio_off_one),
    Detector("judge", "validation", reward_without_judge),
)
