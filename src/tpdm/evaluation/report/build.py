"""Builds the report of an evaluation: a single HTML file that loads no other files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpdm.core.formatting import duration, signed_interval
from tpdm.core.io import write_text
from tpdm.evaluation.report.conclusions import agreement, effect, measures_of, verdict
from tpdm.evaluation.report.layout import Page, Section, Table, render_page
from tpdm.evaluation.report.results import LEARNED, REFERENCE, Results, gains, load_results
from tpdm.evaluation.report.sections import (
    SIGNS,
    distribution_section,
    gain_section,
    picture_section,
    plot_section,
    quality_section,
    training_section,
)
from tpdm.evaluation.statistics import quantile_of_difference, samples_of

NOTES = {
    "reward": "Reward: the training reward.",
    "accuracy": "Accuracy: share of the prompt that a scene reader finds in the image.",
    "residual": "Residual: RMS distance (0 to 255) to the nearest image that the renderer can draw. Lower is better.",
}


def write_report(folder: Path, title: str) -> Path:
    """Render ``folder/report.html`` from the results of an evaluation.

    Args:
        folder: Folder with summary.json and results.jsonl. train/metrics.jsonl and pictures/<policy>/<index>.png are
            used if they exist.
        title: Heading of the page.

    Returns:
        Path of the report.

    Raises:
        ConfigError: If the folder contains no finished evaluation.
    """
    results = load_results(Path(folder))
    summary = results.summary
    sections = [
        _policies(summary),
        _differences(results),
        gain_section(summary),
        quality_section(summary),
        distribution_section(summary),
        plot_section(results),
        training_section(results),
        picture_section(results),
    ]
    page = Page(title, verdict(summary), [section for section in sections if section], _origin(summary))
    return write_text(results.folder / "report.html", render_page(page))


def markdown_table(summary: Mapping[str, Any]) -> str:
    """Return the table of policies as Markdown."""
    head = _columns(summary)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *_policy_cells(summary)]
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n" for line in lines)


def _columns(summary: Mapping[str, Any]) -> list[str]:
    return ["policy", "steps", "s / image", *measures_of(summary)]


def _policy_cells(summary: Mapping[str, Any]) -> list[list[str]]:
    _, *judged = measures_of(summary)
    return [
        [
            row["name"],
            f"{row['steps_mean']:.1f} ± {row['steps_sd']:.1f}",
            *(_number(row.get(key)) for key in ("seconds_per_image", "reward_mean", *judged)),
        ]
        for row in summary["rows"]
    ]


def _policies(summary: Mapping[str, Any]) -> Section:
    learned = {i for i, row in enumerate(summary["rows"]) if row["name"] == LEARNED}
    return Section(
        "Policies",
        Table(_columns(summary), _policy_cells(summary), learned),
        note="Steps: network evaluations per image, mean ± standard deviation over images. s / image: seconds of the "
        "batch, divided by its images. A baseline at equal steps is a mixture of two schedules, and so is its time. "
        + " ".join(NOTES.get(m, f"{m}: a judge that training never saw.") for m in measures_of(summary)),
    )


def _differences(results: Results) -> Section:
    paired, measures = results.summary.get("paired", {}), measures_of(results.summary)
    cells = [
        [name, *(signed_interval(differences.get(m)) + SIGNS[effect(m, differences.get(m))] for m in measures)]
        for name, differences in paired.items()
    ]
    return Section(
        "tpdm minus each baseline",
        Table(["baseline", *measures], cells),
        agreement(results.summary),
        f"{_number_of_images(results.summary)}Every policy gets the same prompts and the same initial noise. Values: "
        "mean [95 % bootstrap interval over prompts]. ▲ better, ▼ worse, ≈ not significant (the interval contains "
        f"zero). {_wins(results.summary)} {_tail(results)}",
    )


def _number_of_images(summary: Mapping[str, Any]) -> str:
    """Return a sentence with the number of images per policy, or nothing for a summary without it."""
    return f"Images per policy: {summary['images']}. " if "images" in summary else ""


def _wins(summary: Mapping[str, Any]) -> str:
    """Return a sentence on how often the TPM has the higher reward."""
    rate = summary.get("paired", {}).get(REFERENCE, {}).get("win_rate")
    if rate is None:
        return ""
    share, low, high = (100 * x for x in rate)
    return (
        f"{LEARNED} has a higher reward than {REFERENCE} in {share:.0f} % [{low:.0f}, {high:.0f}] of the images "
        "(ties count half)."
    )


def _tail(results: Results) -> str:
    """Return a sentence on the largest losses, which the mean does not show."""
    gain_of = gains(results.rows_of)
    if len(gain_of) < 2:
        return ""
    gain, samples = [*gain_of.values()], samples_of([results.rows_of[LEARNED][i]["prompt"] for i in gain_of])
    value, low, high = quantile_of_difference(gain, 0.1, samples=samples)
    worst = quantile_of_difference(gain, 0.01, samples=samples)
    return (
        f"Reward of {LEARNED} minus {REFERENCE}: {signed_interval((value, low, high))} or lower in the worst 10 % of "
        f"the images, {signed_interval(worst)} or lower in the worst 1 %."
    )


def _origin(summary: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "seeds": summary.get("seeds"),
        "versions": summary.get("versions"),
        "git revision": summary.get("git_revision"),
        "hardware": summary.get("hardware"),
        "command": summary.get("command"),
        "training time": _duration(summary.get("train_seconds")),
        "total time": _duration(summary.get("total_seconds")),
    }
    return {key: _plain(value) for key, value in facts.items() if value}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)


def _number(value: float | None) -> str:
    """Format with four digits, because scores that are cosines differ only in the last ones."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{4 if abs(value) < 1 else 3}f}".replace("-", "−")
