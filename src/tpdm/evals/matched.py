"""The report's answer to the hard question: at equal steps, what is better than the best fixed schedule, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from tpdm.evals.markup import Markup, element, join, table
from tpdm.evals.results import LEARNED
from tpdm.evals.style import FIXED, MARKERS, OTHERS, render
from tpdm.evals.style import LEARNED as LEARNED_COLOUR
from tpdm.evals.verdict import effect, signed, signed_interval

DEFAULT, OWN_MEAN = "default, equal steps", "mean schedule of tpdm"
SIGNS = {"better": " ▲", "worse": " ▼", "unclear": " ≈", "unknown": ""}


def gain_section(summary: Mapping[str, Any]) -> Markup:
    """How much of the gain over the default schedule of as many steps one schedule for all images has already."""
    paired = summary.get("paired", {})
    if DEFAULT not in paired or OWN_MEAN not in paired:
        return join()
    total, adaptive = paired[DEFAULT]["reward"], paired[OWN_MEAN]["reward"]
    shared = total[0] - adaptive[0]
    lines = [
        ["in all: tpdm minus the pipeline's own schedule of as many steps", signed_interval(total)],
        ["spacing: its mean schedule, the same for every image, minus that", signed(shared)],
        ["looking: tpdm minus its mean schedule", signed_interval(adaptive)],
    ]
    return element(
        "section",
        element("h2", "Where the gain comes from"),
        table(["part of the gain in reward", "value"], lines),
        element(
            "p",
            "At equal mean steps. Where a control has whole numbers of steps, its values are interpolated, image by "
            "image, between the two schedules around the mean. The first line is the sum of the other two. "
            + _head_room(summary.get("oracle")),
            class_="note",
        ),
    )


def _head_room(oracle: Mapping[str, Any] | None) -> str:
    if oracle is None:
        return ""
    share = "" if oracle["share"] is None else f", of which tpdm has {100 * oracle['share']:.0f} %"
    return (
        f"An oracle that knows the reward and picks for each of {oracle['images']} images one of the best fixed "
        f"schedules would, at {oracle['steps']:.1f} steps, be {signed(oracle['oracle'] - oracle['fixed'])} above a "
        f"fixed one{share}."
    )


def dial_section(summary: Mapping[str, Any]) -> Markup:
    """A TPM with a dial at several qualities, each beside fixed schedules of as many steps; nothing without a dial."""
    points: Sequence[Mapping[str, Any]] = summary.get("points") or []
    if not points:
        return join()
    # Schedules tuned by training do not reach every number of steps.
    controls = list(dict.fromkeys(name for point in points for name in point["paired"]))
    head = [
        "quality",
        "gamma",
        "steps",
        "reward",
        *(f"minus {name.removesuffix(', equal steps')}" for name in controls),
    ]
    cells = [
        [
            f"{point['quality']:g}",
            f"{point['gamma']:.5f}",
            f"{point['row']['steps_mean']:.1f} ± {point['row']['steps_sd']:.1f}",
            f"{point['row']['reward_mean']:.4f}",
            *(_difference(point["paired"].get(name)) for name in controls),
        ]
        for point in points
    ]
    drawn = render(lambda axes: _curves(axes, points), "mean number of steps", "mean reward")
    caption = "Reward against steps: the dial of one TPM, and fixed schedules of as many steps."
    return element(
        "section",
        element("h2", "The dial"),
        table(head, cells),
        element("p", "Reward of tpdm minus each control at equal mean steps, mean [95 % interval].", class_="note"),
        element("figure", element("img", src=drawn, alt=caption), element("figcaption", caption)),
    )


def distribution_section(summary: Mapping[str, Any]) -> Markup:
    """Distances between sets of images, where an extractor was given."""
    found: Mapping[str, Mapping[str, float | None]] = summary.get("distribution") or {}
    if not found:
        return join()
    names = ("fid", "kid", "cmmd", "diversity")
    keys = [key for key in names if any(row.get(key) is not None for row in found.values())]
    cells = [[name, *(_plain(row.get(key)) for key in keys)] for name, row in found.items()]
    return element(
        "section",
        element("h2", "Sets of images"),
        table(["policy", *keys], cells),
        element(
            "p",
            "Distances to the pictures of evaluation.reference, or without one to those of the policy that has none; "
            "lower is nearer. Diversity is the mean cosine distance between images of the same prompt.",
            class_="note",
        ),
    )


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _difference(found: Mapping[str, Sequence[float]] | None) -> str:
    interval = None if found is None else found.get("reward")
    return signed_interval(interval) + SIGNS[effect("reward", interval)]


def _curves(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    lines = {LEARNED: [(p["row"]["steps_mean"], p["row"]["reward_mean"]) for p in points]}
    for point in points:
        for row in point["controls"]:
            lines.setdefault(row["name"], []).append((row["steps_mean"], row["reward_mean"]))
    looks = [(LEARNED_COLOUR, "D"), (FIXED, "o"), *zip(OTHERS, MARKERS, strict=True)]
    # A line too many looks like another one, and is drawn.
    for (name, places), (colour, marker) in zip(lines.items(), cycle(looks)):
        x, y = zip(*sorted(places), strict=True)
        axes.plot(x, y, marker=marker, color=colour, markersize=5, label=name)
    axes.legend()
