"""Draw the plots of the report from rows. Each function returns a data URI."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpdm.evaluation.report.plot_style import FAINT, FIXED, INK, LEARNED, MARKERS, OTHERS, Rows, column, render
from tpdm.evaluation.statistics import paired_bootstrap, samples_of, spearman

SINGLE_SCHEDULES = 12

BOXES_UP_TO = 12

WIDTH, HEIGHT, NAME = 5.0, 3.2, 0.18  # in inches. NAME is the height of one legend entry below the plot


def quality_against_steps(rows_of: Mapping[str, Rows], measure: str, label: str, **options: Any) -> str:
    """Draw the mean of a measure against mean steps, with one point and 95 % interval per policy.

    Args:
        rows_of: Rows of every policy. ``tpdm`` is highlighted. A line connects those called static-<number>.
        measure: Key of the measure in the rows.
        label: Label of the vertical axis.
        options: Options of ``plot_style.render``.
    """

    def draw(axes: Any) -> None:
        places = {
            name: (
                float(np.mean(column(rows, "steps"))),
                *mean_interval(column(rows, measure), samples_of([row["prompt"] for row in rows])),
            )
            for name, rows in rows_of.items()
        }
        static = sorted(p for name, p in places.items() if re.fullmatch(r"static-\d+", name))
        if static:
            _points(axes, static, fmt="o-", color=FIXED, label="static")
        others = [n for n in places if n != "tpdm" and not re.fullmatch(r"static-\d+", n)]
        for i, name in enumerate(others):
            again = i // len(MARKERS)  # use the markers again, in other colors
            look = {"fmt": MARKERS[i % len(MARKERS)], "color": OTHERS[(i + again) % len(OTHERS)]}
            _points(axes, [places[name]], label=name, **look)
        if "tpdm" in places:  # not filled, so that it does not hide a baseline
            highlight: dict[str, Any] = {
                "fmt": "D",
                "color": LEARNED,
                "markersize": 10,
                "markerfacecolor": "none",
                "mew": 2.4,
            }
            _points(axes, [places["tpdm"]], zorder=5, label="tpdm", **highlight)
        axes.xaxis.get_major_locator().set_params(integer=True)
        # Below the axes: a legend with a dozen names would hide points.
        axes.figure.legend(loc="outside lower center")

    tall = (WIDTH, HEIGHT + NAME * len(rows_of))
    return render(draw, "mean number of steps", label, **{"size": tall, **options})


def steps_histogram(rows: Rows, **options: Any) -> str:
    """Draw the histogram of steps per image."""

    def draw(axes: Any) -> None:
        steps = column(rows, "steps")
        number, count = np.unique(steps, return_counts=True)
        axes.bar(number, count, color=LEARNED, width=0.8)
        axes.axvline(steps.mean(), color=INK, linestyle="--", label=f"mean {steps.mean():.1f}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.15)
        axes.legend()

    return render(draw, "steps", "images", **options)


def schedules(rows: Rows, **options: Any) -> str:
    """Draw time against step: mean and 10 - 90 % band of all images, a dozen schedules, and the uniform grid.

    A finished image counts with t = 0. The dozen schedules are spread evenly over the images, sorted by steps.
    """

    def draw(axes: Any) -> None:
        lists = sorted((list(r["times"]) for r in rows), key=len)
        longest = len(lists[-1])
        t_BN = np.asarray([times + [0.0] * (longest - len(times)) for times in lists])
        steps = np.arange(longest)
        low, high = np.quantile(t_BN, (0.1, 0.9), axis=0)
        axes.fill_between(steps, low, high, color=LEARNED, alpha=0.2, linewidth=0, label="10 - 90 % of images")
        for i in np.unique(np.linspace(0, len(lists) - 1, SINGLE_SCHEDULES).round().astype(int)):
            axes.plot(lists[i], color=LEARNED, alpha=0.35, linewidth=0.6)
        axes.plot(steps, t_BN.mean(axis=0), color=LEARNED, linewidth=2.2, label="mean of tpdm")
        n = max(1, round(float(np.mean([len(times) - 1 for times in lists]))))
        axes.plot(np.linspace(1, 0, n + 1), color=INK, linestyle="--", label=f"uniform, {n} steps")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    return render(draw, "step", "diffusion time t", **options)


def steps_by_objects(rows: Rows, **options: Any) -> str:
    """Draw mean steps by number of objects in the prompt, with 95 % intervals."""

    def draw(axes: Any) -> None:
        groups = defaultdict(list)
        for row in rows:
            groups[int(row["objects"])].append(row["steps"])
        samples = samples_of([row["prompt"] for row in rows])  # images of one prompt have the same number of objects
        places = [(n, *mean_interval(np.asarray(groups[n], dtype=float), samples)) for n in sorted(groups)]
        _points(axes, places, fmt="D", color=LEARNED, markersize=7)
        axes.set_xticks([p[0] for p in places], [f"{n}\n({len(groups[n])})" for n in sorted(groups)])
        axes.margins(x=0.15)

    return render(draw, "objects in the prompt (images)", "mean number of steps", **options)


def steps_against_difficulty(pairs: Sequence[Sequence[float]], note: str = "", **options: Any) -> str:
    """Draw steps against difficulty, one jittered dot per image. Up to 12 levels of difficulty get box plots."""

    def draw(axes: Any) -> None:
        x, y = np.asarray(pairs, dtype=float).T
        levels, place = np.unique(x, return_inverse=True)
        jitter_x, jitter_y = np.random.default_rng(0).uniform(-1, 1, (2, len(x)))
        boxes = len(levels) <= BOXES_UP_TO
        across = place + 0.28 * jitter_x if boxes else x
        axes.scatter(across, y + 0.2 * jitter_y, s=9, color=FAINT if boxes else LEARNED, alpha=0.5, linewidths=0)
        if boxes:
            line = {"color": LEARNED, "linewidth": 1.4}
            axes.boxplot(
                [y[place == i] for i in range(len(levels))],
                positions=range(len(levels)),
                widths=0.6,
                showfliers=False,
                boxprops=line,
                whiskerprops=line,
                capprops=line,
                medianprops={**line, "linewidth": 2.6},
            )
            axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.set_title(note, fontsize=9.5, loc="left")

    return render(draw, "difficulty (steps a fixed schedule needs)", "steps of tpdm", **options)


def mean_interval(values_B: NDArray[np.float64], samples: int = 1) -> tuple[float, float, float]:
    """Compute a mean and its 95 % interval over prompts.

    Args:
        values_B: One value per image. Images of one prompt are adjacent.
        samples: Number of images per prompt.

    Returns:
        (mean, low, high). All three are equal if there is one prompt.
    """
    if len(values_B) == samples:
        return (float(values_B.mean()),) * 3
    return paired_bootstrap(values_B, resamples=2_000, samples=samples)


def _points(axes: Any, places: Sequence[tuple[float, float, float, float]], **look: Any) -> None:
    """Draw points (x, y, low, high) with their intervals."""
    x, y, low, high = np.asarray(places, dtype=float).T
    axes.errorbar(x, y, yerr=[y - low, high - y], capsize=3, elinewidth=1.3, **{"markersize": 6, **look})


BINS = 6


def words_of(rows: Rows) -> NDArray[np.int64]:
    """Count the words of each prompt."""
    return np.asarray([len(str(row["prompt"]).split()) for row in rows])


def length_bins(words_B: NDArray[np.int64], bins: int = BINS) -> list[tuple[int, int]]:
    """Split prompt lengths into ranges (shortest, longest) with about the same number of images.

    Example:
        >>> length_bins(np.array([2, 3, 4, 5]), bins=2)
        [(2, 4), (5, 5)]
    """
    edges = np.unique(np.quantile(words_B, np.linspace(0, 1, bins + 1), method="higher"))
    if len(edges) == 1:
        return [(int(edges[0]), int(edges[0]))]
    lows = [int(edges[0]), *(int(edge) + 1 for edge in edges[1:-1])]
    return list(zip(lows, (int(edge) for edge in edges[1:]), strict=True))


def steps_by_length(rows: Rows, **options: Any) -> str:
    """Draw mean steps by number of words in the prompt, with 95 % intervals."""

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
    """Describe the relation of steps and prompt length in one sentence."""
    found = spearman(words_of(rows), column(rows, "steps"), samples=samples_of([row["prompt"] for row in rows]))
    if found is None:
        return "The rank correlation of steps and words is undefined because one of them is constant."
    rho, low, high = found
    return f"Rank correlation of steps and words {rho:.2f} [{low:.2f}, {high:.2f}]."
