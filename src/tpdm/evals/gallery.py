"""The report's pictures side by side, chosen by rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpdm.evals.markup import Markup, element, join
from tpdm.evals.results import LEARNED, PER_RULE, REFERENCE, Results, choose_images, gains
from tpdm.evals.style import data_uri
from tpdm.evals.verdict import signed


def picture_section(results: Results) -> Markup:
    """Every policy's picture of the images that ``choose_images`` picks."""
    gain = gains(results.rows_of)
    parts = [
        join(element("h3", rule), *(_image_row(results, i, gain[i]) for i in indices))
        for rule, indices in choose_images(results.rows_of)
    ]
    return element(
        "section",
        element("h2", "Pictures"),
        element(
            "p",
            f"Chosen by rule: difference is the score of {LEARNED} minus that of {REFERENCE}; steps are those of "
            f"{LEARNED}; {PER_RULE} images a rule, ties to the lower index.",
            class_="note",
        ),
        *parts,
    )


def _image_row(results: Results, index: int, gain: float) -> Markup:
    made = {n: rows[index] for n, rows in results.rows_of.items() if index in rows and results.has_pictures(n)}
    first = made[LEARNED]
    heading = f"“{first['prompt']}” (image {index}, seed {first['seed']}, difference {signed(gain)})"
    return element(
        "div",
        element("p", heading, class_="prompt"),
        element("div", *(_tile(results, name, row) for name, row in made.items()), class_="strip"),
    )


def _tile(results: Results, name: str, row: Mapping[str, Any]) -> Markup:
    content = results.picture(name, int(row["index"]))
    picture = (
        element("img", src=data_uri(content, "image/png"), alt=f"{name}: {row['prompt']}", class_="pixels")
        if content
        else element("div", "no picture kept", class_="empty")
    )
    steps = f"{row['steps']} step{'' if row['steps'] == 1 else 's'}, score {signed(row['score'])}"
    return element(
        "figure",
        picture,
        element("figcaption", element("b", name), steps),
        class_="tile learned" if name == LEARNED else "tile",
    )
