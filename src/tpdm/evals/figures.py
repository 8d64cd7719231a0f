"""The report's sections of plots, each plot with its caption."""

from __future__ import annotations

from tpdm.evals import plots
from tpdm.evals.curves import training_curves
from tpdm.evals.markup import Markup, element
from tpdm.evals.prompt_plots import length_relation, steps_by_length
from tpdm.evals.results import LEARNED, Results
from tpdm.evals.verdict import LESS_IS_BETTER, measures_of, relation


def plot_section(results: Results) -> Markup:
    """Quality against steps, and what the steps of tpdm depend on; plots whose data are missing are left out."""
    rows_of = {name: list(rows.values()) for name, rows in results.rows_of.items()}
    learned, summary = rows_of[LEARNED], results.summary
    figures = [
        _figure(
            plots.quality_against_steps(rows_of, "score", "mean reward"),
            "Reward against steps. These intervals hold the variance between images; whether two policies "
            "differ is answered by the paired differences above.",
        )
    ]
    for judge in (name for name in measures_of(summary)[1:] if name not in LESS_IS_BETTER):
        if all(judge in row for rows in rows_of.values() for row in rows):
            drawn = plots.quality_against_steps(rows_of, judge, f"mean {judge}")
            figures.append(_figure(drawn, f"{judge[:1].upper()}{judge[1:]} against steps; training never saw it."))
    figures += [
        _figure(plots.steps_histogram(learned), "Steps that tpdm takes."),
        _figure(
            plots.schedules(learned),
            "Schedules that tpdm predicts; a finished image counts with t = 0. A dozen single ones are thin.",
        ),
    ]
    if all("objects" in row for row in learned):
        drawn = plots.steps_by_objects(learned)
        figures.append(_figure(drawn, "Mean steps of tpdm by objects in the prompt, with 95 % intervals."))
    drawn = steps_by_length(learned)
    figures.append(_figure(drawn, f"Mean steps of tpdm by length of the prompt. {length_relation(learned)}"))
    if summary.get("difficulty"):
        facts = summary.get("steps_vs_difficulty") or {}
        margin = f"{facts['margin']:.4g}" if "margin" in facts else "a margin"
        tried = ", ".join(map(str, facts["grid"])) if "grid" in facts else "see summary.json"
        how = (
            "Difficulty: the fewest steps of a fixed schedule from which on the score of an image stays within "
            f"{margin} of its best; steps tried: {tried}."
        )
        drawn = plots.steps_against_difficulty(summary["difficulty"])
        figures.append(_figure(drawn, f"{relation(facts)} {how}"))
    return element("section", element("h2", "Steps and quality"), element("div", *figures, class_="figures"))


def training_section(results: Results) -> Markup:
    """Training curves, or the note that there is no log."""
    curves = [
        _figure(drawn, caption)
        for caption, drawn in training_curves(results.metrics, results.summary.get("best_update"))
    ]
    shown = element("div", *curves, class_="figures") if curves else element("p", "No training log was kept.")
    return element("section", element("h2", "Training"), shown)


def _figure(uri: str, caption: str) -> Markup:
    return element("figure", element("img", src=uri, alt=caption), element("figcaption", caption))
