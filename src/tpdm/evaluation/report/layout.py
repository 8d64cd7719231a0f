"""Plain data of the report's page, and the jinja2 templates that lay it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways if it is too wide.

    Attributes:
        head: Names of the columns.
        rows: Cells. The first cell of a row is its header, the others are aligned as numbers.
        marked: Indices of highlighted rows.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Set[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A plot as a data URI, with its caption."""

    src: str
    caption: str


@dataclass(frozen=True)
class Tile:
    """One policy's image of a prompt.

    Attributes:
        policy: Name of the policy.
        caption: Steps and score.
        learned: Whether the policy is the TPM. Its tiles have an outline.
        src: Image as a data URI. Empty if the image is not stored.
        alt: Alternative text of the image.
        look: CSS class of the image: ``pixels`` for a small one, ``photo`` for a large one.
    """

    policy: str
    caption: str
    learned: bool
    src: str = ""
    alt: str = ""
    look: str = "pixels"


@dataclass(frozen=True)
class ImageRow:
    """All policies' images of one prompt."""

    heading: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class ImageGroup:
    """The images that one rule selects."""

    rule: str
    rows: Sequence[ImageRow]


@dataclass(frozen=True)
class Section:
    """A heading and whatever follows it, in the order of the attributes."""

    heading: str
    table: Table | None = None
    text: str = ""
    note: str = ""
    chart: Figure | None = None
    figures: Sequence[Figure] = ()
    groups: Sequence[ImageGroup] = ()


@dataclass(frozen=True)
class Page:
    """The report.

    Attributes:
        title: Heading of the page.
        conclusion: Sentence below the heading.
        sections: Sections in their order.
        origin: How the results were made, by label.
    """

    title: str
    conclusion: str
    sections: Sequence[Section]
    origin: Mapping[str, str]


def render_page(page: Page) -> str:
    """Render a complete HTML document that needs no other file."""
    return templates().get_template("report.html.j2").render(page=page)


@cache
def templates() -> Environment:
    """Return the templates' environment. It escapes every value."""
    loader = PackageLoader("tpdm.evaluation.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment
