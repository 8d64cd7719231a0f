"""Pages of the site that are files of the repository's root, and links to files that are no pages.

Links in ``docs`` are written for the repository: ``../../deploy/nginx.conf`` works there. On the site a link to a page
stays, and a link to another file of the repository becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the root; called by MkDocs."""
    for name, place in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=move_links(text, name, place)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links of a page; called by MkDocs."""
    place = page.file.src_uri
    return markdown if place in PAGES.values() else move_links(markdown, f"docs/{place}", place)


def move_links(text: str, source: str, place: str) -> str:
    """``text`` of the repository's file ``source`` with the links that it needs at ``place`` of the site."""

    def moved(link: re.Match[str]) -> str:
        mark, words, target, anchor = link[1], link[2], link[3], link[4] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in PAGES:
            path = f"docs/{PAGES[path]}"
        elif not path.startswith("docs/") or (ROOT / path).is_dir():
            return words if (ROOT / path).exists() else link[0]
        path = re.sub(r"\.ipynb$", ".md", path)  # docs/hooks/notebooks.py makes a page of it
        relative = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(place) or ".")
        return f"{mark}[{words}]({relative}{anchor})"

    return _LINK.sub(moved, text)
