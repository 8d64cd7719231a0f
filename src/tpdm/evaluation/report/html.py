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


STYLE = Markup("""
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5c5c63; --line: #d9d9de; --ground: #fff;
  --mark: #fdf0e6; --learned: #c45500; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececef; --soft: #a8a8b0; --line: #3d3d44; --ground: #17171a; --mark: #33241a;
    --learned: #ff9a4d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 74rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--learned); padding-left: .8rem; }
.note, figcaption, dd, dt, .prompt { font-size: .88rem; }
.note, figcaption { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: .4rem; }
tbody th { font-weight: normal; }
.marked { background: var(--mark); }
.marked th { font-weight: bold; }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.figures figure { flex: 1 1 21rem; max-width: 27rem; min-width: 0; }
figure { margin: 0; }
.figures img { display: block; width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px;
  padding: .4rem; }
figcaption { margin-top: .3rem; }
.prompt { margin: .6rem 0 .3rem; }
.strip { display: flex; flex-wrap: wrap; gap: .7rem; }
.tile { width: 6rem; }
.tile figcaption { line-height: 1.3; font-size: .8rem; }
.tile b { display: block; }
.pixels, .empty { display: block; width: 6rem; height: 6rem; border: 1px solid var(--line); }
.pixels { image-rendering: pixelated; }
.large { width: 16rem; }
.photo { display: block; width: 100%; height: auto; border: 1px solid var(--line); }
.empty { color: var(--soft); font-size: .8rem; padding: .4rem; }
.learned .pixels, .learned .photo, .learned .empty { outline: 3px solid var(--learned); }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; }
dt { color: var(--soft); }
dd { margin: 0; }
""")

# The browser itself is told to fetch nothing: the promise of one file is enforced, not only kept.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, body: Markup) -> str:
    """A complete HTML document."""
    head = join(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE),
    )
    html = element("html", element("head", head), element("body", element("main", body)), lang="en")
    return f"<!doctype html>\n{html}\n"
