"""The section of docs/frontier.md and its picture, from the results of ``frontier``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.page import signed, table
from benchmarks.quality.comparison import BETTER, origin, reach
from benchmarks.quality.experiments import DEFAULT, GRID, STATIC, TUNED
from tpdm.core.io import write_atomically
from tpdm.evaluation.report.plot_style import FIXED, LEARNED, OTHERS

SHORT = {GRID: "best hand-made grid", TUNED: "schedule tuned by the same training", DEFAULT: "default schedule"}
RANGE = (4.5, 20.5)  # mean steps of the points that the verdicts count: about 5 to 20


def part(facts: Mapping[str, Any]) -> str:
    """The section of the page."""
    return "\n\n".join(make(facts) for make in (verdicts, judges, along, capped, looking, origin))


def draw(facts: Mapping[str, Any], chosen: argparse.Namespace) -> None:
    """Writes the picture."""
    write_atomically(chosen.picture, lambda path: figure_of(facts).savefig(path, format="png", dpi=120))


def verdicts(facts: Mapping[str, Any]) -> str:
    """At how many points the TPM is significantly better or worse than each baseline."""
    points = [p for p in facts["points"] if RANGE[0] <= np.mean(p["steps"]) <= RANGE[1]]
    lines = []
    for control in (GRID, TUNED):
        for label in ("reward", "accuracy", "residual"):
            means = [p["minus"][control][label]["mean"] for p in points if label in p["minus"].get(control, {})]
            gains = [sorted(BETTER[label] * bound for bound in mean[1:]) for mean in means]
            above, below = sum(g[0] > 0 for g in gains), sum(g[1] < 0 for g in gains)
            lines.append(
                f"- {label} against the {SHORT[control]}: significantly better at {above} of {len(gains)} points, "
                f"significantly worse at {below}."
            )
    lines.append(f"- {reach([p['steps'] for p in facts['points']], 'quality')}")
    return (
        f"Points with {RANGE[0]:g} to {RANGE[1]:g} mean steps ({len(points)}), intervals over seeds and prompts:\n\n"
        + ("\n".join(lines))
    )


def judges(facts: Mapping[str, Any]) -> str:
    """At which points a judge that training never saw has another sign than the reward."""
    found = []
    for p in facts["points"]:
        for control in (GRID, TUNED):
            minus = p["minus"].get(control, {})
            if "reward" not in minus:
                continue
            gain = minus["reward"]["mean"][0]
            for label in ("accuracy", "residual"):
                mean, low, high = minus[label]["mean"]
                if gain * mean * BETTER[label] < 0:
                    sure = "significantly" if low > 0 or high < 0 else "not significantly"
                    worse = "worse" if gain > 0 else "better"
                    found.append(f"{label} at quality {p['quality']:g} against the {SHORT[control]} ({worse}, {sure})")
    if not found:
        return "Judges that training never saw have the sign of the reward at every point, against both."
    return f"Judges that training never saw have another sign than the reward: {'; '.join(found)}."


def capped(facts: Mapping[str, Any]) -> str:
    """The difference from 28 steps in two parts: images at the cap of steps, and the others."""
    lines = []
    for p in facts["points"]:
        cap = p["cap"]
        share = f"{100 * np.mean(cap['share']):.1f} %"
        lines.append([f"{p['quality']:g}", share, f"{cap['capped']:+.4f}", f"{cap['others']:+.4f}"])
    cap = facts["points"][0]["cap"]["cap"]
    intro = f"Images that reach the cap of {cap} steps end in equal steps. Reward minus 28 default steps, in two parts:"
    return f"{intro}\n\n{table('quality | images at the cap | they bring | the others bring', lines)}"


def along(facts: Mapping[str, Any]) -> str:
    """One line for each quality and each baseline."""
    lines = []
    for p in facts["points"]:
        place = [f"{p['quality']:g}", f"{np.mean(p['steps']):.1f} ({min(p['steps']):.1f} to {max(p['steps']):.1f})"]
        for control in (GRID, TUNED, DEFAULT, STATIC):
            minus = p["minus"].get(control, {})
            if "reward" not in minus:
                continue
            name = SHORT.get(control, "28 steps, default") + (
                f" ({minus['of']} of {len(p['steps'])} seeds)" if control == TUNED else ""
            )
            cells = [signed(minus[label]["mean"]) for label in ("reward", "accuracy", "residual")]
            lines.append([*place, name, *cells, f"{minus['worst'][0]:+.3f}"])
            place = ["", ""]
    head = "quality | mean steps (over seeds) | tpdm minus | reward | accuracy | residual | worst 1 %"
    return table(head, lines)


def looking(facts: Mapping[str, Any]) -> str:
    """At the TPM's own gamma: the TPM minus itself without looking, and the oracle's head-room."""
    own = facts["own"]
    lines = [
        [name, *(signed(minus[label]["mean"]) for label in ("reward", "accuracy", "residual"))]
        for name, minus in own["minus"].items()
    ]
    intro = f"At the recipe's own gamma ({np.mean(own['steps']):.1f} mean steps):"
    found = [intro, table("tpdm minus | reward | accuracy | residual", lines)]
    if not facts["oracle"]:
        return "\n\n".join(found)
    share = [o["share"] for o in facts["oracle"] if o["share"] is not None]
    room = np.mean([o["oracle"] - o["fixed"] for o in facts["oracle"]])
    room_text = (
        f"An oracle that picks for each of {facts['oracle'][0]['images']} images one of the best grids, knowing the "
        f"reward, has {room:+.4f} over a fixed one of as many steps"
    )
    room_text += f"; tpdm has {100 * np.mean(share):.0f} % of that." if share else "."
    return "\n\n".join([*found, room_text])


def figure_of(facts: Mapping[str, Any]) -> Figure:
    """Reward against steps, over seeds; the line of 28 default steps."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(xlabel="mean steps (network evaluations per image)", ylabel="mean reward")
    points: Sequence[Mapping[str, Any]] = facts["points"]
    x = [np.mean(p["steps"]) for p in points]
    axes.plot(
        x, [p["means"]["reward"] for p in points], "D-", color=LEARNED, label="tpdm, one TPM for all gammas", zorder=5
    )
    looks = {GRID: ("o", FIXED), TUNED: ("s", OTHERS[0]), DEFAULT: ("^", OTHERS[1])}
    for name, (marker, color) in looks.items():
        found = [(n, p["controls"][name]) for n, p in zip(x, points, strict=True) if name in p["controls"]]
        if found:
            axes.plot(*zip(*found, strict=True), marker=marker, color=color, label=SHORT[name])
    axes.axhline(facts["static"], color="#8a8a8a", linestyle="--", linewidth=1, label="28 steps, default schedule")
    axes.legend(frameon=False, fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
