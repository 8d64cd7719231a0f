"""Signs that a run goes wrong, read from its metrics: the likely cause, and the key of the recipe to change.

Each detector is a pure function of the rows so far. The rows are the whole state, so that a resumed run, and whoever
watches from outside, come to the same warnings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tpdm.config.recipe import Recipe

Row = Mapping[str, Any]
# A detector is told of the rows of its kind, the newest last, and answers with a warning or None.
Detect = Callable[[Sequence[Row], Recipe], str | None]

WINDOW = 3  # rows in a row, so that one loud update is no sign
RECOVERED_AFTER = 5  # rows without the sign, before it is worth saying again
ENTROPY_FLOOR = -4.0  # nats: a Beta of standard deviation .004; runs that learn stay above -2
LARGEST_DEVIATION = 1e-3  # of a ratio from 1 before the first step; rounding gives less than 1e-4
NEARLY_ALL = 0.9  # share of images
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class TrainingWarning:
    """One warning.

    Attributes:
        sign: name of the detector.
        update: at which it was seen.
        message: what was seen, why it may be, and what to change.
    """

    sign: str
    update: int
    message: str


@dataclass(frozen=True)
class Detector:
    """A sign to look for in rows of one kind."""

    sign: str
    kind: Literal["train", "validation"]
    detect: Detect


class TrainingMonitor:
    """Looks at the rows of a run as they come; each sign is told once, and again only after it was gone.

    Args:
        recipe: of the run.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._rows: dict[str, list[Row]] = {"train": [], "validation": []}
        self._well: dict[str, int] = {}  # rows without the sign, since it was told

    def look(self, row: Row) -> list[TrainingWarning]:
        """Takes in the next row and returns what is new to tell."""
        rows = self._rows[row["kind"]]
        rows.append(row)
        told = []
        for detector in DETECTORS:
            if detector.kind != row["kind"]:
                continue
            message = detector.detect(rows, self.recipe)
            if message is None:
                self._get_well(detector.sign)
                continue
            if detector.sign not in self._well:
                told.append(TrainingWarning(detector.sign, int(row["update"]), message))
            self._well[detector.sign] = 0
        return told

    def _get_well(self, sign: str) -> None:
        if sign in self._well:
            self._well[sign] += 1
            if self._well[sign] >= RECOVERED_AFTER:
                del self._well[sign]


def find_warnings(rows: Sequence[Row], recipe: Recipe) -> list[TrainingWarning]:
    """All warnings of a run, in the order in which they were given."""
    health = TrainingMonitor(recipe)
    return [warned for row in rows for warned in health.look(row)]


def entropy_collapse(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """The policy has become certain: samples of a group no longer differ."""
    latest = [row["entropy"] for row in rows[-WINDOW:]]
    if len(latest) < WINDOW or max(latest) >= ENTROPY_FLOOR:
        return None
    return (
        f"the entropy of the decisions fell to {latest[-1]:.1f} nats (from {rows[0]['entropy']:.1f} at first): nothing "
        "new is tried any more; set rl.entropy_weight (0.001 to 0.01), or lower optimizer.lr"
    )


def silent_reward(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """No group holds two different objectives, so that no gradient says anything."""
    latest = rows[-WINDOW:]
    if len(latest) < WINDOW or any(row["silent_groups"] < 1 for row in latest):
        return None
    if latest[-1]["score_sd"] == 0:
        cause = f"the reward gave {latest[-1]['score_mean']:g} to every image: try reward.name on two unlike images"
    else:
        cause = (
            "the reward is too coarse to tell them apart, or all of them took one schedule: take a finer reward.name, "
            "or raise rl.samples_per_prompt"
        )
    return f"for {WINDOW} updates all samples of each prompt had the same objective, which teaches nothing; {cause}"


def at_the_cap(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """Nearly every image is ended by the cap."""
    cap = recipe.sampling.max_steps
    if cap == 1 or not _nearly_all_take(cap, rows):
        return None
    seen = f"for {WINDOW} updates nearly every image took all of the {cap} steps that sampling.max_steps allows"
    if recipe.reward.form == "additive":
        return f"{seen}: steps are too cheap, or the cap is too low; raise reward.step_cost, or sampling.max_steps"
    worth = rows[-1]["score_mean"] + recipe.reward.offset
    if worth <= 0:
        return (
            f"{seen}: score plus reward.offset is {worth:.3g} on average, and below 0 the discount pays for steps; "
            "raise reward.offset until the sum is positive"
        )
    return f"{seen}: steps are too cheap, or the cap is too low; lower reward.gamma, or raise sampling.max_steps"


def at_one_step(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """Nearly every image is finished in one step."""
    if recipe.sampling.max_steps == 1 or not _nearly_all_take(1, rows):
        return None
    key = "lower reward.step_cost" if recipe.reward.form == "additive" else "raise reward.gamma"
    return f"for {WINDOW} updates nearly every image took one step: steps are too dear for this reward; {key}"


def _nearly_all_take(steps: int, rows: Sequence[Row]) -> bool:
    latest = [row["steps_histogram"] for row in rows[-WINDOW:]]
    return len(latest) == WINDOW and all(h.get(str(steps), 0) >= NEARLY_ALL * sum(h.values()) for h in latest)


def ratio_off_one(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """Decisions are scored otherwise than when they were sampled."""
    deviation = rows[-1]["ratio_deviation"]
    if deviation <= LARGEST_DEVIATION:
        return None
    return (
        f"a probability ratio was {deviation:.2g} away from 1 before the first step of the update, where it must be 1: "
        "something changes the policy or its precision between rollout and update (autocast or a dtype from outside); "
        "take it away, and set backbone.dtype=fp32 to see whether it comes from there"
    )


def reward_without_judge(rows: Sequence[Row], recipe: Recipe) -> str | None:
    """The reward rises while a judge that training does not see falls: the reward is being exploited."""
    now = rows[-1]
    for name, judged in now.get("judges", {}).items():
        known = [row for row in rows if name in row.get("judges", {})]
        before = max(known, key=lambda row: row["judges"][name]["mean"])
        best = before["judges"][name]
        # As if the images were others each time: they are not, so that the true error is smaller.
        error = ((judged["sd"] ** 2 + best["sd"] ** 2) / sum(now["steps_histogram"].values())) ** 0.5
        falls = best["mean"] - judged["mean"] > STANDARD_ERRORS * error
        if falls and now["score_mean"] > before["score_mean"]:
            return (
                f"since update {before['update']} the reward rose from {before['score_mean']:.4g} to "
                f"{now['score_mean']:.4g} while the judge '{name}' fell from {best['mean']:.4g} to "
                f"{judged['mean']:.4g}, by more than {STANDARD_ERRORS:g} standard errors: the reward is exploited; add "
                "the judge to reward.parts, or set rl.kl_weight"
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
