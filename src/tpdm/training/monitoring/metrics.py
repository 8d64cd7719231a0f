"""Statistics for the rows of metrics.jsonl: steps, reward parts, judges and gammas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

from tpdm.config.recipe import RewardConfig
from tpdm.policies.gamma import gamma_at


def gamma_points(config: RewardConfig, count: int) -> list[float] | None:
    """``count`` >= 2 gammas from the lowest to the highest of the range. None without a range."""
    if config.gamma_range is None:
        return None
    return [gamma_at(i / (count - 1), *config.gamma_range) for i in range(count)]


def gamma_statistics(
    gammas_B: Sequence[float] | None, score_B: Tensor, objective_B: Tensor, steps_B: Sequence[int]
) -> dict[str, Any]:
    """The field ``gamma_points``: means at each gamma of a validation, lowest first. Empty without gammas."""
    if gammas_B is None:
        return {}
    rows = []
    for gamma in sorted(set(gammas_B)):
        rows_at = [i for i, g in enumerate(gammas_B) if g == gamma]
        rows.append(
            {
                "gamma": gamma,
                "steps_mean": fmean(steps_B[i] for i in rows_at),
                "score_mean": float(score_B[rows_at].mean()),
                "objective_mean": float(objective_B[rows_at].mean()),
            }
        )
    return {"gamma_points": rows}


def calibration(validation: Mapping[str, Any]) -> tuple[tuple[float, float], ...] | None:
    """(gamma, mean steps) of a validation, for ``PretrainedConfig.gamma_steps``. None without gammas."""
    rows = validation.get("gamma_points", validation.get("dial"))  # version 0.1 wrote dial
    return None if rows is None else tuple((row["gamma"], row["steps_mean"]) for row in rows)


def part_statistics(parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """The field ``parts``: mean and standard deviation of each part's scores in its own unit. Empty without parts."""
    return {"parts": _by_name(parts)} if parts else {}


def judge_statistics(judged: Mapping[str, Tensor]) -> dict[str, Any]:
    """The field ``judges``: mean and standard deviation of each judge's scores. Empty without judges."""
    return {"judges": _by_name(judged)} if judged else {}


def _by_name(scores: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    return {key: {"mean": float(s.mean()), "sd": float(s.std(correction=0))} for key, s in scores.items()}


def step_statistics(steps: Sequence[int]) -> dict[str, Any]:
    """Mean, standard deviation, extremes and histogram of the number of steps.

    Example:
        >>> step_statistics([3, 12, 3])["steps_histogram"]
        {'3': 2, '12': 1}
    """
    return {
        "steps_mean": fmean(steps),
        "steps_sd": pstdev(steps),
        "steps_min": min(steps),
        "steps_max": max(steps),
        "steps_histogram": {str(n): count for n, count in sorted(Counter(steps).items())},
    }
