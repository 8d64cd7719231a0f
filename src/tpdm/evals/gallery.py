"""The report's pictures side by side, chosen by rule."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from tpdm.evals.markup import Markup, element, join
from tpdm.evals.results import LEARNED, PER_RULE, REFERENCE, Results, choose_images, gains
from tpdm.evals.style import data_uri
from tpdm.evals.verdict import signed

SMALL = 128  # pixels a side, up to which a picture is shown as it is, its pixels enlarged
SHOWN = 512  # larger ones are made so small: fifty pictures of a megapixel would be a page of a hundred megabytes
QUALITY = 92  # of JPEG


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
    if content:
        source, small = _embedded(content)
        look = "pixels" if small else "photo"
        picture = element("img", src=source, alt=f"{name}: {row['prompt']}", class_=look)
    else:
        small, picture = True, element("div", "no picture kept", class_="empty")
    steps = f"{row['steps']} step{'' if row['steps'] == 1 else 's'}, score {signed(row['score'])}"
    looks = ["tile", *([] if small else ["large"]), *(["learned"] if name == LEARNED else [])]
    return element("figure", picture, element("figcaption", element("b", name), steps), class_=" ".join(looks))


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
