"""Sentences from intervals. A difference is claimed only if its interval excludes zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tpdm.core.formatting import is_interval, signed_interval
from tpdm.evaluation.report.results import LEARNED, REFERENCE

LESS_IS_BETTER = ("residual",)  # every other measure, including a recipe's judges, is better if higher

NO_MEASURES = {"name", "steps_mean", "steps_sd", "reward_mean", "seconds_per_image"}  # keys of a policy's row

WORDS = {
    "reward": ("a higher reward", "a lower reward", "no significant difference in reward"),
    "accuracy": (
        "more of the prompt in the image",
        "less of the prompt in the image",
        "no significant difference in accuracy",
    ),
    "residual": ("cleaner images", "less clean images", "no significant difference in image quality"),
}

Paired = Mapping[str, Mapping[str, Sequence[float]]]


def measures_of(summary: Mapping[str, Any]) -> list[str]:
    """Return the names of all measures: the reward, then those of the scene reader and of the recipe's judges."""
    return ["reward", *dict.fromkeys(key for row in summary["rows"] for key in row if key not in NO_MEASURES)]


def effect(measure: str, interval: Sequence[float] | None) -> str:
    """Classify an interval as ``better``, ``worse``, ``unclear`` or ``unknown``.

    ``unclear`` means that the interval contains zero, ``unknown`` that there is none.

    Example:
        >>> effect("reward", (0.2, 0.1, 0.3)), effect("residual", (0.2, 0.1, 0.3)), effect("reward", (0.1, -0.1, 0.3))
        ('better', 'worse', 'unclear')
    """
    if not is_interval(interval):
        return "unknown"
    _, low, high = interval
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == (measure not in LESS_IS_BETTER) else "worse"


def verdict(summary: Mapping[str, Any]) -> str:
    """Return one sentence: steps and measures of tpdm against static-28, then its reward against each baseline."""
    paired: Paired = summary.get("paired", {})
    findings = [_finding(measure, paired.get(REFERENCE, {}).get(measure)) for measure in measures_of(summary)]
    sentence = f"{_steps(summary)} and shows {_listed(findings)} against {REFERENCE}"
    others = {name: effect("reward", p.get("reward")) for name, p in paired.items() if name != REFERENCE}
    phrases = {
        "better": "above {}",
        "worse": "below {}",
        "unclear": "not significantly different from {}",
        "unknown": "not compared with {}",
    }
    clauses = []
    for kind, phrase in phrases.items():
        names = [name for name, e in others.items() if e == kind]
        if names:
            clauses.append(phrase.format(_listed(names)))
    return sentence + (f"; its reward is {_listed(clauses)}." if clauses else ".")


def agreement(summary: Mapping[str, Any]) -> str:
    """Return a sentence on whether held-out judges agree with the sign of the reward in every comparison."""
    judges = measures_of(summary)[1:]
    if not judges:
        return "Only the training reward scored these images. Add held-out judges with evaluation.judges."
    places = [(f"against {name}", differences) for name, differences in summary.get("paired", {}).items()]
    for point in summary.get("points") or []:
        where = f"at quality {point['quality']:g} against"
        places += [(f"{where} {name}", differences) for name, differences in point["paired"].items()]
    contradictions = [
        f"{judge} {place} ({words})"
        for place, differences in places
        for judge in judges
        if (words := _contradiction(judge, differences))
    ]
    if not contradictions:
        return f"Judges that training never saw ({_listed(judges)}) agree with the sign of the reward everywhere."
    return f"Judges that training never saw disagree with the sign of the reward: {'; '.join(contradictions)}."


def _contradiction(judge: str, differences: Mapping[str, Sequence[float]]) -> str | None:
    """Return how a judge contradicts the reward, and whether significantly. None if it does not."""
    reward, other = differences.get("reward"), differences.get(judge)
    if not (is_interval(reward) and is_interval(other)):
        return None
    gain = -other[0] if judge in LESS_IS_BETTER else other[0]
    if reward[0] * gain >= 0:
        return None
    sure = "not significantly" if effect(judge, other) == "unclear" else "significantly"
    return f"{'worse' if gain < 0 else 'better'}, {sure}"


def relation(correlation: Mapping[str, Any] | None) -> str:
    """Return a sentence on steps against measured difficulty."""
    numbers = [(correlation or {}).get(key) for key in ("correlation", "low", "high")]
    if any(x is None or not math.isfinite(x) for x in numbers):
        return "The rank correlation of steps and difficulty does not exist, because one of them is constant."
    rho, low, high = (float(x) for x in numbers if x is not None)
    if low > 0:
        claim = "Harder images get more steps"
    elif high < 0:
        claim = "Harder images get fewer steps"
    else:
        claim = "The relation of steps and difficulty is not significant"
    return f"{claim}: rank correlation {rho:.2f} [{low:.2f}, {high:.2f}]."


def _steps(summary: Mapping[str, Any]) -> str:
    mean = {row["name"]: float(row["steps_mean"]) for row in summary["rows"]}
    sd = {row["name"]: float(row["steps_sd"]) for row in summary["rows"]}
    learned, reference = mean[LEARNED], mean[REFERENCE]
    change = 100 * (learned / reference - 1)
    words = "the same" if abs(change) < 0.5 else f"{abs(change):.0f} % {'fewer' if change < 0 else 'more'}"
    taken = f"{learned:.1f} ± {sd[LEARNED]:.1f} steps"
    return f"{LEARNED} takes {taken} where {REFERENCE} takes {reference:.0f} ({words})"


def _finding(measure: str, interval: Sequence[float] | None) -> str:
    kind = effect(measure, interval)
    if kind == "unknown":
        return f"an unmeasured {measure}"
    other = (f"a higher {measure}", f"a lower {measure}", f"no significant difference in {measure}")
    word = WORDS.get(measure, other)[{"better": 0, "worse": 1, "unclear": 2}[kind]]
    return f"{word} ({signed_interval(interval)})"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
