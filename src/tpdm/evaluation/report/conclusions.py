"""Words for numbers: a claim is made only where the interval excludes zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tpdm.core.formatting import is_interval, signed_interval
from tpdm.evaluation.report.results import LEARNED, REFERENCE

LESS_IS_BETTER = ("residual",)  # of every other measure, those of a recipe's judges too, more is

NO_MEASURES = {"name", "steps_mean", "steps_sd", "reward_mean", "seconds_per_image"}  # of a policy's row

WORDS = {
    "reward": ("a higher reward", "a lower reward", "no measurable difference in reward"),
    "accuracy": (
        "more of the prompt in the picture",
        "less of the prompt in the picture",
        "no measurable difference in accuracy",
    ),
    "residual": ("cleaner pictures", "less clean pictures", "no measurable difference in picture quality"),
}

Paired = Mapping[str, Mapping[str, Sequence[float]]]


def measures_of(summary: Mapping[str, Any]) -> list[str]:
    """What was measured: the reward, and what training never saw (the scene reader's, and the recipe's judges)."""
    return ["reward", *dict.fromkeys(key for row in summary["rows"] for key in row if key not in NO_MEASURES)]


def effect(measure: str, interval: Sequence[float] | None) -> str:
    """``better``, ``worse``, ``unclear`` (zero lies in the interval) or ``unknown`` (there is no interval)."""
    if not is_interval(interval):
        return "unknown"
    _, low, high = interval
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == (measure not in LESS_IS_BETTER) else "worse"


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence: steps and measures of tpdm against static-28, then its reward against other controls."""
    paired: Paired = summary.get("paired", {})
    found = [_finding(measure, paired.get(REFERENCE, {}).get(measure)) for measure in measures_of(summary)]
    sentence = f"{_steps(summary)} and shows {_listed(found)} against {REFERENCE}"
    others = {name: effect("reward", p.get("reward")) for name, p in paired.items() if name != REFERENCE}
    phrases = {
        "better": "above {}",
        "worse": "below {}",
        "unclear": "not measurably different from {}",
        "unknown": "not compared with {}",
    }
    said = []
    for kind, phrase in phrases.items():
        names = [name for name, e in others.items() if e == kind]
        if names:
            said.append(phrase.format(_listed(names)))
    return sentence + (f"; its reward is {_listed(said)}." if said else ".")


def agreement(summary: Mapping[str, Any]) -> str:
    """A sentence on whether judges that training never saw have the sign of the reward, wherever both were measured."""
    judges = measures_of(summary)[1:]
    if not judges:
        return "Nothing but the training reward judged these pictures: name others in evaluation.judges."
    places = [(f"against {name}", found) for name, found in summary.get("paired", {}).items()]
    for point in summary.get("points") or []:
        where = f"at quality {point['quality']:g} against"
        places += [(f"{where} {name}", found) for name, found in point["paired"].items()]
    apart = [
        f"{judge} {place} ({said})" for place, found in places for judge in judges if (said := _apart(judge, found))
    ]
    if not apart:
        return f"Judges that training never saw ({_listed(judges)}) have the sign of the reward everywhere."
    return f"Judges that training never saw have another sign than the reward: {'; '.join(apart)}."


def _apart(judge: str, found: Mapping[str, Sequence[float]]) -> str | None:
    """How sure a judge is where it contradicts the reward; None where it does not."""
    reward, other = found.get("reward"), found.get(judge)
    if not (is_interval(reward) and is_interval(other)):
        return None
    gain = -other[0] if judge in LESS_IS_BETTER else other[0]
    if reward[0] * gain >= 0:
        return None
    sure = "not significantly" if effect(judge, other) == "unclear" else "significantly"
    return f"{'worse' if gain < 0 else 'better'}, {sure}"


def relation(correlation: Mapping[str, Any] | None) -> str:
    """A sentence on steps against measured difficulty."""
    numbers = [(correlation or {}).get(key) for key in ("correlation", "low", "high")]
    if any(x is None or not math.isfinite(x) for x in numbers):
        return "A rank correlation of steps and difficulty does not exist here (one of them is constant)."
    rho, low, high = (float(x) for x in numbers if x is not None)
    if low > 0:
        claim = "Harder images get more steps"
    elif high < 0:
        claim = "Harder images get fewer steps"
    else:
        claim = "No relation of steps and difficulty was measured"
    return f"{claim}: rank correlation {rho:.2f} [{low:.2f}, {high:.2f}]."


def _steps(summary: Mapping[str, Any]) -> str:
    mean = {row["name"]: float(row["steps_mean"]) for row in summary["rows"]}
    sd = {row["name"]: float(row["steps_sd"]) for row in summary["rows"]}
    learned, reference = mean[LEARNED], mean[REFERENCE]
    change = 100 * (learned / reference - 1)
    words = "as many" if abs(change) < 0.5 else f"{abs(change):.0f} % {'fewer' if change < 0 else 'more'}"
    taken = f"{learned:.1f} ± {sd[LEARNED]:.1f} steps"
    return f"{LEARNED} takes {taken} where {REFERENCE} takes {reference:.0f} ({words})"


def _finding(measure: str, interval: Sequence[float] | None) -> str:
    kind = effect(measure, interval)
    if kind == "unknown":
        return f"an unmeasured {measure}"
    other = (f"a higher {measure}", f"a lower {measure}", f"no measurable difference in {measure}")
    word = WORDS.get(measure, other)[{"better": 0, "worse": 1, "unclear": 2}[kind]]
    return f"{word} ({signed_interval(interval)})"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
