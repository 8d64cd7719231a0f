"""The report's sections of plots, each plot with its caption."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from PIL import Image

from tpdm.core.formatting import plural, signed, signed_interval
from tpdm.evaluation.report import plots
from tpdm.evaluation.report.conclusions import LESS_IS_BETTER, effect, measures_of, relation
from tpdm.evaluation.report.curves import training_curves
from tpdm.evaluation.report.layout import Figure, ImageGroup, ImageRow, Section, Table, Tile
from tpdm.evaluation.report.plot_style import FIXED, MARKERS, OTHERS, data_uri, render
from tpdm.evaluation.report.plot_style import LEARNED as LEARNED_COLOR
from tpdm.evaluation.report.plots import length_relation, steps_by_length
from tpdm.evaluation.report.results import LEARNED, PER_RULE, REFERENCE, Results, choose_images, gains


def plot_section(results: Results) -> Section:
    """Quality against steps, and what the steps of tpdm depend on; plots whose data are missing are left out."""
    rows_of = {name: list(rows.values()) for name, rows in results.rows_of.items()}
    learned, summary = rows_of[LEARNED], results.summary
    figures = [
        Figure(
            plots.quality_against_steps(rows_of, "score", "mean reward"),
            "Reward against steps. These intervals hold the variance between images; whether two policies "
            "differ is answered by the paired differences above.",
        )
    ]
    for judge in (name for name in measures_of(summary)[1:] if name not in LESS_IS_BETTER):
        if all(judge in row for rows in rows_of.values() for row in rows):
            drawn = plots.quality_against_steps(rows_of, judge, f"mean {judge}")
            figures.append(Figure(drawn, f"{judge[:1].upper()}{judge[1:]} against steps; training never saw it."))
    figures += [
        Figure(plots.steps_histogram(learned), "Steps that tpdm takes."),
        Figure(
            plots.schedules(learned),
            "Schedules that tpdm predicts; a finished image counts with t = 0. A dozen single ones are thin.",
        ),
    ]
    if all("objects" in row for row in learned):
        drawn = plots.steps_by_objects(learned)
        figures.append(Figure(drawn, "Mean steps of tpdm by objects in the prompt, with 95 % intervals."))
    drawn = steps_by_length(learned)
    figures.append(Figure(drawn, f"Mean steps of tpdm by length of the prompt. {length_relation(learned)}"))
    if summary.get("difficulty"):
        facts = summary.get("steps_vs_difficulty") or {}
        margin = f"{facts['margin']:.4g}" if "margin" in facts else "a margin"
        tried = ", ".join(map(str, facts["grid"])) if "grid" in facts else "see summary.json"
        how = (
            "Difficulty: the fewest steps of a fixed schedule from which on the score of an image stays within "
            f"{margin} of its best; steps tried: {tried}."
        )
        drawn = plots.steps_against_difficulty(summary["difficulty"])
        figures.append(Figure(drawn, f"{relation(facts)} {how}"))
    return Section("Steps and quality", figures=figures)


def training_section(results: Results) -> Section:
    """Training curves, or the note that there is no log."""
    curves = training_curves(results.metrics, results.summary.get("best_update"))
    text = "" if curves else "No training log was kept."
    return Section("Training", text=text, figures=[Figure(drawn, caption) for caption, drawn in curves])


SMALL = 128  # pixels a side, up to which a picture is shown as it is, its pixels enlarged

SHOWN = 512  # larger ones are made so small: fifty pictures of a megapixel would be a page of a hundred megabytes

QUALITY = 92  # of JPEG


def picture_section(results: Results) -> Section:
    """Every policy's picture of the images that ``choose_images`` picks."""
    gain = gains(results.rows_of)
    groups = [
        ImageGroup(rule, [_image_row(results, i, gain[i]) for i in indices])
        for rule, indices in choose_images(results.rows_of)
    ]
    return Section(
        "Pictures",
        note=f"Chosen by rule: difference is the score of {LEARNED} minus that of {REFERENCE}; steps are those of "
        f"{LEARNED}; {PER_RULE} images a rule, ties to the lower index.",
        groups=groups,
    )


def _image_row(results: Results, index: int, gain: float) -> ImageRow:
    made = {n: rows[index] for n, rows in results.rows_of.items() if index in rows and results.has_pictures(n)}
    first = made[LEARNED]
    heading = f"“{first['prompt']}” (image {index}, seed {first['seed']}, difference {signed(gain)})"
    return ImageRow(heading, [_tile(results, name, row) for name, row in made.items()])


def _tile(results: Results, name: str, row: Mapping[str, Any]) -> Tile:
    steps = f"{plural(row['steps'], 'step')}, score {signed(row['score'])}"
    tile = Tile(name, steps, learned=name == LEARNED)
    content = results.picture(name, int(row["index"]))
    if content is None:
        return tile
    source, small = _embedded(content)
    return replace(tile, src=source, alt=f"{name}: {row['prompt']}", look="pixels" if small else "photo")


def _embedded(content: bytes) -> tuple[str, bool]:
    """A kept PNG as the page's own data, and whether it is a small one."""
    with Image.open(io.BytesIO(content)) as picture:
        if max(picture.size) <= SMALL:
            return data_uri(content, "image/png"), True
        shown = picture.convert("RGB")
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return data_uri(buffer.getvalue(), "image/jpeg"), False


DEFAULT, OWN_MEAN = "default, equal steps", "mean schedule of tpdm"

SIGNS = {"better": " ▲", "worse": " ▼", "unclear": " ≈", "unknown": ""}


def gain_section(summary: Mapping[str, Any]) -> Section | None:
    """How much of the gain over the default schedule of as many steps one schedule for all images has already."""
    paired = summary.get("paired", {})
    if DEFAULT not in paired or OWN_MEAN not in paired:
        return None
    total, adaptive = paired[DEFAULT]["reward"], paired[OWN_MEAN]["reward"]
    shared = total[0] - adaptive[0]
    lines = [
        ["in all: tpdm minus the pipeline's own schedule of as many steps", signed_interval(total)],
        ["spacing: its mean schedule, the same for every image, minus that", signed(shared)],
        ["looking: tpdm minus its mean schedule", signed_interval(adaptive)],
    ]
    return Section(
        "Where the gain comes from",
        Table(["part of the gain in reward", "value"], lines),
        note=(
            "At equal mean steps. Where a control has whole numbers of steps, its values are interpolated, image by "
            "image, between the two schedules around the mean. The first line is the sum of the other two. "
            + _head_room(summary.get("oracle"))
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


def quality_section(summary: Mapping[str, Any]) -> Section | None:
    """A TPM with a dial at several qualities, each beside fixed schedules of as many steps; nothing without a dial."""
    points: Sequence[Mapping[str, Any]] = summary.get("points") or []
    if not points:
        return None
    # Schedules tuned by training do not reach every number of steps.
    baselines = list(dict.fromkeys(name for point in points for name in point["paired"]))
    head = [
        "quality",
        "gamma",
        "steps",
        "reward",
        *(f"minus {name.removesuffix(', equal steps')}" for name in baselines),
    ]
    cells = [
        [
            f"{point['quality']:g}",
            f"{point['gamma']:.5f}",
            f"{point['row']['steps_mean']:.1f} ± {point['row']['steps_sd']:.1f}",
            f"{point['row']['reward_mean']:.4f}",
            *(_difference(point["paired"].get(name)) for name in baselines),
        ]
        for point in points
    ]
    drawn = render(lambda axes: _curves(axes, points), "mean number of steps", "mean reward")
    caption = "Reward against steps: the dial of one TPM, and fixed schedules of as many steps."
    return Section(
        "The dial",
        Table(head, cells),
        note="Reward of tpdm minus each control at equal mean steps, mean [95 % interval].",
        chart=Figure(drawn, caption),
    )


def distribution_section(summary: Mapping[str, Any]) -> Section | None:
    """Distances between sets of images, where an extractor was given."""
    found: Mapping[str, Mapping[str, float | None]] = summary.get("distribution") or {}
    if not found:
        return None
    names = ("fid", "kid", "cmmd", "diversity")
    keys = [key for key in names if any(row.get(key) is not None for row in found.values())]
    cells = [[name, *(_plain(row.get(key)) for key in keys)] for name, row in found.items()]
    return Section(
        "Sets of images",
        Table(["policy", *keys], cells),
        note="Distances to the pictures of evaluation.reference, or without one to those of the policy that has none; "
        "lower is nearer. Diversity is the mean cosine distance between images of the same prompt.",
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
    looks = [(LEARNED_COLOR, "D"), (FIXED, "o"), *zip(OTHERS, MARKERS, strict=True)]
    # A line too many looks like another one, and is drawn.
    for (name, places), (color, marker) in zip(lines.items(), cycle(looks)):
        x, y = zip(*sorted(places), strict=True)
        axes.plot(x, y, marker=marker, color=color, markersize=5, label=name)
    axes.legend()
