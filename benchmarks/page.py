"""Generated sections of Markdown pages, and the tables in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tpdm.core.io import write_text


def write_sections(page: Path, sections: Mapping[str, str]) -> None:
    """Replaces the text between the marks of every section of a page."""
    write_text(page, with_sections(page.read_text(encoding="utf-8"), sections))


def with_sections(text: str, sections: Mapping[str, str]) -> str:
    """The text of a page with other sections.

    Args:
        text: Markdown with ``<!-- NAME: generated ... -->`` before each section and ``<!-- end of NAME -->`` after it.
        sections: Texts by name.

    Raises:
        ValueError: The marks of a name do not occur exactly once.
    """
    for name, section in sections.items():
        word = re.escape(name)
        marks = re.compile(rf"(<!-- {word}: generated[^>]*-->\n).*?(<!-- end of {word} -->)", re.DOTALL)
        text, count = marks.subn(lambda found, new=section: f"{found[1]}{new}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"The marks of section {name!r} occur {count} times. They must occur once.")
    return text


def table(head: str, lines: Iterable[Sequence[str]], *, narrow: bool = False) -> str:
    """A Markdown table.

    Args:
        head: Names of the columns, with `` | `` between them.
        lines: Cells of every line.
        narrow: Whether the second line has no spaces.
    """
    columns = head.count(" | ") + 1
    rule = "|" + "---|" * columns if narrow else f"| {' | '.join(['---'] * columns)} |"
    return "\n".join([f"| {head} |", rule, *(f"| {' | '.join(cells)} |" for cells in lines)])


def signed(interval: Sequence[float]) -> str:
    """Mean and interval, in bold where the interval excludes 0."""
    mean, low, high = interval
    text = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if low > 0 or high < 0 else text
