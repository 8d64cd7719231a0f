"""HTML without a template language: what is not marked as markup is escaped, so it cannot be forgotten."""

from __future__ import annotations

from html import escape

VOID = {"img", "meta"}


class Markup(str):
    """Text that is HTML already; every other string is escaped where it enters an element."""


def element(tag: str, *children: str | None, **attributes: str) -> Markup:
    """``<tag attributes>children</tag>``, None left out.

    Names of attributes in Python's spelling: ``class_`` is class, ``http_equiv`` is http-equiv.
    """
    written = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(v, quote=True)}"' for k, v in attributes.items())
    if tag in VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: str | None) -> Markup:
    """Children one after the other, text escaped."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None))


def table(head: list[str], rows: list[list[str]], marked: set[int] | None = None) -> Markup:
    """A table that scrolls sideways where it is too wide; the first cell of a row is its header.

    Args:
        head: names of the columns.
        rows: cells; all but the first are aligned as numbers.
        marked: indices of rows to set off.
    """
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
            class_="marked" if i in (marked or set()) else "",
        )
        for i, row in enumerate(rows)
    ]
    top = element("thead", element("tr", *(element("th", name, scope="col") for name in head)))
    return element("div", element("table", top, element("tbody", *body)), class_="wide")
