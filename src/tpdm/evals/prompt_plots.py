"""Steps against what can be read off a prompt without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpdm.evals.plots import mean_interval
from tpdm.evals.statistics import samples_of, spearman
from tpdm.evals.style import LEARNED, Rows, column, render

BINS = 6


def words_of(rows: Rows) -> NDArray[np.int64]:
    """Words of each prompt."""
    return np.asarray([len(str(row["prompt"]).split()) for row in rows])


def length_bins(words_B: NDArray[np.int64], bins: int = BINS) -> list[tuple[int, int]]:
    """Ranges (shortest, longest) of prompt lengths that share the images about evenly; each length is in one."""
    edges = np.unique(np.quantile(words_B, np.linspace(0, 1, bins + 1), method="higher"))
    if len(edges) == 1:
        return [(int(edges[0]), int(edges[0]))]
    lows = [int(edges[0]), *(int(edge) + 1 for edge in edges[1:-1])]
    return list(zip(lows, (int(edge) for edge in edges[1:]), strict=True))


def steps_by_length(rows: Rows, **options: Any) -> str:
    """Mean steps of the images whose prompts have so many words, with 95 % intervals."""

    def draw(axes: Any) -> None:
        words_B, steps_B = words_of(rows), column(rows, "steps")
        names, places, samples = [], [], samples_of([row["prompt"] for row in rows])
        for low, high in length_bins(words_B):
            inside_B = (words_B >= low) & (words_B <= high)
            names.append(f"{low}\n({inside_B.sum()})" if low == high else f"{low}-{high}\n({inside_B.sum()})")
            places.append(mean_interval(steps_B[inside_B], samples))
        mean, low_, high_ = np.asarray(places).T
        axes.errorbar(range(len(names)), mean, yerr=[mean - low_, high_ - mean], fmt="D", color=LEARNED, capsize=3)
        axes.set_xticks(range(len(names)), names)
        axes.margins(x=0.15)

    return render(draw, "words in the prompt (images)", "mean number of steps", **options)


def length_relation(rows: Rows) -> str:
    """A sentence on steps against the length of the prompt."""
    found = spearman(words_of(rows), column(rows, "steps"), samples=samples_of([row["prompt"] for row in rows]))
    if found is None:
        return "A rank correlation of steps and words does not exist here (one of them is constant)."
    rho, low, high = found
    return f"Rank correlation of steps and words {rho:.2f} [{low:.2f}, {high:.2f}]."
