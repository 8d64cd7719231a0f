"""Numbers of a row of metrics.jsonl: steps, reward parts, judges, and points over gamma."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

from tpdm.config.recipe import RewardConfig
from tpdm.policies.gamma import gamma_at


def gamma_points(config: RewardConfig, count: int) -> list[float] | None:
    """``count`` gammas from one end of the range to the other; None without a dial."""
    if config.gamma_range is None:
        return None
    return [gamma_at(i / (count - 1), *config.gamma_range) for i in range(count)]


def gamma_statistics(
    gammas_B: Sequence[float] | None, score_B: Tensor, objective_B: Tensor, steps_B: Sequence[int]
) -> dict[str, Any]:
    """``gamma_points``: what was measured at each gamma of a validation, lowest first; nothing without a dial."""
    if gammas_B is None:
        return {}
    rows = []
    for gamma in sorted(set(gammas_B)):
        here = [i for i, g in enumerate(gammas_B) if g == gamma]
        rows.append(
            {
                "gamma": gamma,
                "steps_mean": fmean(steps_B[i] for i in here),
                "score_mean": float(score_B[here].mean()),
                "objective_mean": float(objective_B[here].mean()),
            }
        )
    return {"gamma_points": rows}


def calibration(validation: Mapping[str, Any]) -> tuple[tuple[float, float], ...] | None:
    """(gamma, mean steps) as a validation measured them, for ``PretrainedConfig.gamma_steps``; None without a dial."""
    rows = validation.get("gamma_points", validation.get("dial"))  # version 0.1 wrote dial
    return None if rows is None else tuple((row["gamma"], row["steps_mean"]) for row in rows)


def part_statistics(parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean and standard deviation of each part's raw scores (B,), in its own unit; nothing where there are no parts."""
    return {"parts": _by_name(parts)} if parts else {}


def judge_statistics(judged: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same of each held-out judge's scores; nothing where there are no judges."""
    return {"judges": _by_name(judged)} if judged else {}


def _by_name(scores: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    return {key: {"mean": float(s.mean()), "sd": float(s.std(correction=0))} for key, s in scores.items()}


def step_statistics(steps: Sequence[int]) -> dict[str, Any]:
    """Mean, standard deviation, extremes and histogram of the number of steps."""
    return {
        "steps_mean": fmean(steps),
        "steps_sd": pstdev(steps),
        "steps_min": min(steps),
        "steps_max": max(steps),
        "steps_histogram": {str(n): count for n, count in sorted(Counter(steps).items())},
    }
