"""Builds the sections of the report: plots, tables and images."""

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
    """Plot quality against steps, and what the steps of tpdm depend on. Plots without data are left out."""
    rows_of = {name: list(rows.values()) for name, rows in results.rows_of.items()}
    learned, summary = rows_of[LEARNED], results.summary
    figures = [
        Figure(
            plots.quality_against_steps(rows_of, "score", "mean reward"),
            "Reward against steps. The intervals include the variance between images. To compare two policies, use "
            "the paired differences above.",
        )
    ]
    for judge in (name for name in measures_of(summary)[1:] if name not in LESS_IS_BETTER):
        if all(judge in row for rows in rows_of.values() for row in rows):
            drawn = plots.quality_against_steps(rows_of, judge, f"mean {judge}")
            figures.append(
                Figure(drawn, f"{judge[:1].upper()}{judge[1:]} against steps. Training never saw this judge.")
            )
    figures += [
        Figure(plots.steps_histogram(learned), "Steps that tpdm takes."),
        Figure(
            plots.schedules(learned),
            "Schedules that tpdm predicts. A finished image counts with t = 0. Thin lines are a dozen single images.",
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
            "Difficulty of an image: the smallest number of steps of a fixed schedule from which its score stays "
            f"within {margin} of its best. Numbers of steps tried: {tried}."
        )
        drawn = plots.steps_against_difficulty(summary["difficulty"])
        figures.append(Figure(drawn, f"{relation(facts)} {how}"))
    return Section("Steps and quality", figures=figures)


def training_section(results: Results) -> Section:
    """Plot the training curves. Without a log there is only a sentence."""
    curves = training_curves(results.metrics, results.summary.get("best_update"))
    text = "" if curves else "No training log was kept."
    return Section("Training", text=text, figures=[Figure(drawn, caption) for caption, drawn in curves])


SMALL = 128  # pixels of the longer side; images up to this size are embedded unchanged and enlarged by the page

SHOWN = 512  # pixels of the longer side to which larger images are reduced, to keep the page small

QUALITY = 92  # JPEG quality of larger images


def picture_section(results: Results) -> Section:
    """Show every policy's image of the prompts that ``choose_images`` selects."""
    gain = gains(results.rows_of)
    groups = [
        ImageGroup(rule, [_image_row(results, i, gain[i]) for i in indices])
        for rule, indices in choose_images(results.rows_of)
    ]
    return Section(
        "Images",
        note=f"Images are selected by rule, {PER_RULE} per rule. Difference: score of {LEARNED} minus score of "
        f"{REFERENCE}. Steps: those of {LEARNED}. If values are equal, the lower index comes first.",
        groups=groups,
    )


def _image_row(results: Results, index: int, gain: float) -> ImageRow:
    row_of = {n: rows[index] for n, rows in results.rows_of.items() if index in rows and results.has_pictures(n)}
    first = row_of[LEARNED]
    heading = f"“{first['prompt']}” (image {index}, seed {first['seed']}, difference {signed(gain)})"
    return ImageRow(heading, [_tile(results, name, row) for name, row in row_of.items()])


def _tile(results: Results, name: str, row: Mapping[str, Any]) -> Tile:
    steps = f"{plural(row['steps'], 'step')}, score {signed(row['score'])}"
    tile = Tile(name, steps, learned=name == LEARNED)
    content = results.picture(name, int(row["index"]))
    if content is None:
        return tile
    source, small = _embedded(content)
    return replace(tile, src=source, alt=f"{name}: {row['prompt']}", look="pixels" if small else "photo")


def _embedded(content: bytes) -> tuple[str, bool]:
    """Return a stored PNG as a data URI, and whether it is small."""
    with Image.open(io.BytesIO(content)) as image:
        if max(image.size) <= SMALL:
            return data_uri(content, "image/png"), True
        shown = image.convert("RGB")
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return data_uri(buffer.getvalue(), "image/jpeg"), False


DEFAULT, OWN_MEAN = "default, equal steps", "mean schedule of tpdm"

SIGNS = {"better": " ▲", "worse": " ▼", "unclear": " ≈", "unknown": ""}


def gain_section(summary: Mapping[str, Any]) -> Section | None:
    """Split the gain over the default schedule into a part that one schedule for all images has, and the rest."""
    paired = summary.get("paired", {})
    if DEFAULT not in paired or OWN_MEAN not in paired:
        return None
    total, adaptive = paired[DEFAULT]["reward"], paired[OWN_MEAN]["reward"]
    shared = total[0] - adaptive[0]
    lines = [
        ["total: tpdm minus the pipeline's own schedule", signed_interval(total)],
        [
            "spacing: the mean schedule of tpdm, the same for every image, minus the pipeline's own schedule",
            signed(shared),
        ],
        ["adaptation to the image: tpdm minus its mean schedule", signed_interval(adaptive)],
    ]
    return Section(
        "Where the gain comes from",
        Table(["part of the gain in reward", "value"], lines),
        note=(
            "At equal mean steps. A fixed schedule has an integer number of steps, so its values are interpolated per "
            "image between the two schedules around the mean. The first line is the sum of the other two. "
            + _head_room(summary.get("oracle"))
        ),
    )


def _head_room(oracle: Mapping[str, Any] | None) -> str:
    if oracle is None:
        return ""
    share = "" if oracle["share"] is None else f", and tpdm reaches {100 * oracle['share']:.0f} % of this gain"
    return (
        f"An oracle knows the reward and selects the best fixed schedule for each of {oracle['images']} images. "
        f"At {oracle['steps']:.1f} steps it gains {signed(oracle['oracle'] - oracle['fixed'])} over a fixed "
        f"schedule{share}."
    )


def quality_section(summary: Mapping[str, Any]) -> Section | None:
    """Compare a gamma-conditioned TPM at several qualities with fixed schedules at equal steps. None for other TPMs."""
    points: Sequence[Mapping[str, Any]] = summary.get("points") or []
    if not points:
        return None
    # Schedules tuned by training exist only for some numbers of steps.
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
    caption = "Reward against steps: one TPM at several qualities, and fixed schedules at equal steps."
    return Section(
        "Quality setting",
        Table(head, cells),
        note="Reward of tpdm minus each baseline at equal mean steps, mean [95 % interval].",
        chart=Figure(drawn, caption),
    )


def distribution_section(summary: Mapping[str, Any]) -> Section | None:
    """Show distances between sets of images. None if no extractor was given."""
    distances: Mapping[str, Mapping[str, float | None]] = summary.get("distribution") or {}
    if not distances:
        return None
    names = ("fid", "kid", "cmmd", "diversity")
    keys = [key for key in names if any(row.get(key) is not None for row in distances.values())]
    cells = [[name, *(_plain(row.get(key)) for key in keys)] for name, row in distances.items()]
    return Section(
        "Sets of images",
        Table(["policy", *keys], cells),
        note="Distances to the images of evaluation.reference. Without a reference they are distances to the policy "
        "whose row has none. Lower is closer. Diversity: mean cosine distance between images of the same prompt.",
    )


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _difference(differences: Mapping[str, Sequence[float]] | None) -> str:
    interval = None if differences is None else differences.get("reward")
    return signed_interval(interval) + SIGNS[effect("reward", interval)]


def _curves(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    lines = {LEARNED: [(p["row"]["steps_mean"], p["row"]["reward_mean"]) for p in points]}
    for point in points:
        for row in point["controls"]:
            lines.setdefault(row["name"], []).append((row["steps_mean"], row["reward_mean"]))
    looks = [(LEARNED_COLOR, "D"), (FIXED, "o"), *zip(OTHERS, MARKERS, strict=True)]
    # If there are more lines than styles, styles repeat.
    for (name, places), (color, marker) in zip(lines.items(), cycle(looks)):
        x, y = zip(*sorted(places), strict=True)
        axes.plot(x, y, marker=marker, color=color, markersize=5, label=name)
    axes.legend()
