"""The page for people: files of the package, read once, so that no request ever reaches the file system."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """A file and its media type."""

    content: bytes
    kind: str


def load_page() -> dict[str, StaticFile]:
    """All files of the page by name; ``index.html`` is the page itself."""
    folder = resources.files("tpdm.serve") / "static"
    return {
        entry.name: StaticFile(entry.read_bytes(), KINDS[f".{entry.name.rpartition('.')[2]}"])
        for entry in folder.iterdir()
    }
