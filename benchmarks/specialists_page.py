"""The part of the page that ``specialists.py`` makes of its results."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiment import origin, signed, table

ALLOWED = 0.01  # share of the specialist's reward


def part(facts: dict[str, Any]) -> str:
    """The page's part."""
    lines, within, worst = [], 0, 0.0
    for point in facts["points"]:
        minus = point["minus"]["reward"]["mean"]
        within += minus[0] >= -ALLOWED * point["reward"]
        worst = max(worst, *(-seed[0] / point["reward"] for seed in point["minus"]["reward"]["seeds"]))
        steps = [f"{np.mean(point[name]):.1f}" for name in ("dial_steps", "steps")]
        minuses = [signed(minus), signed(point["objective_minus"])]
        place = [f"{point['gamma']:.5f}", str(len(point["steps"]))]
        lines.append([*place, *steps, f"{point['reward']:.4f}", *minuses])
    head = [
        "gamma",
        "trainings",
        "steps, dial",
        "steps, specialist",
        "reward, specialist",
        "dial minus specialist",
        "objective",
    ]
    said = (
        f"The dial's reward is within {100 * ALLOWED:g} % of the specialist's at {within} of {len(lines)} gammas. The "
        "objective is what both were trained for at that gamma, eq. (9), of each image. On a single seed the dial's "
        f"reward is at worst {100 * worst:.1f} % below."
    )
    return "\n\n".join([said, reach(facts), table(head, lines), origin(facts)])


def reach(facts: dict[str, Any]) -> str:
    """How far the dials of the seeds reach, and whether steps rise with gamma."""
    steps_GS = np.asarray([point["dial_steps"] for point in facts["points"]])
    times_S = steps_GS[-1] / steps_GS[0]
    rising = int((np.diff(steps_GS, axis=0) > 0).all(axis=0).sum())
    return (
        f"The dial reaches from {steps_GS[0].mean():.1f} to {steps_GS[-1].mean():.1f} mean steps, {times_S.min():.1f} "
        f"to {times_S.max():.1f} times as many on the seeds; steps rise with gamma throughout on {rising} of "
        f"{len(times_S)}."
    )
