"""Draw the training curves from metrics.jsonl, one small plot per quantity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tpdm.evaluation.report.plot_style import FIXED, INK, LEARNED, Rows, column, render


def training_curves(metrics: Rows, kept: int | None = None, **options: Any) -> list[tuple[str, str]]:
    """Draw every curve for which metrics.jsonl has values.

    Args:
        metrics: Rows of metrics.jsonl.
        kept: Update after which the TPM in best/ was saved. None marks no update.
        options: Options of ``plot_style.render``.

    Returns:
        Pairs (caption, data URI).
    """
    train = [r for r in metrics if r.get("kind") == "train"]
    held_out = [r for r in metrics if r.get("kind") == "validation"]
    panels: list[tuple[str, str, list[tuple[str, Rows, str]]]] = [
        (
            "Validation objective (kept is the newest that is not significantly below the highest)",
            "objective_mean",
            [("validation", held_out, LEARNED)],
        ),
        ("Steps, with ± one standard deviation", "steps_mean", _both(train, held_out)),
        ("Score", "score_mean", _both(train, held_out)),
        ("Entropy of the decisions (nats)", "entropy", [("training", train, FIXED)]),
        ("Share of ratios clipped in the last pass", "clip_fraction", [("training", train, FIXED)]),
    ]
    curves = []
    for caption, key, lines in panels:
        present = [(name, [r for r in rows if np.isfinite(r.get(key, np.nan))], color) for name, rows, color in lines]
        if any(rows for _, rows, _ in present):
            drawn = render(_curve(key, present, kept), "update", key.removesuffix("_mean").replace("_", " "), **options)
            curves.append((caption, drawn))
    return curves


def _both(train: Rows, held_out: Rows) -> list[tuple[str, Rows, str]]:
    return [("training", train, FIXED), ("validation", held_out, LEARNED)]


def _curve(key: str, lines: Sequence[tuple[str, Rows, str]], kept: int | None) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for name, rows, color in lines:
            x, y = column(rows, "update"), column(rows, key)
            axes.plot(x, y, "o-" if name == "validation" else "-", color=color, markersize=4, label=name)
            if key == "steps_mean" and name == "training":
                sd = np.asarray([r.get("steps_sd", 0.0) for r in rows], dtype=float)
                axes.fill_between(x, y - sd, y + sd, color=color, alpha=0.18, linewidth=0)
            if key == "objective_mean" and kept in x:
                axes.plot(kept, y[x == kept][-1], "*", color=INK, markersize=13, label=f"kept, update {kept}")
        axes.legend()

    return draw
