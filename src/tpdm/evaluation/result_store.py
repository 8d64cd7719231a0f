"""What an evaluation has measured so far, on disk: a killed one goes on with the image after the last.

A store of controls is shared by several evaluations, which may run at once: who measures a policy holds its lock, and
the others find its rows when they get it.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from tpdm.core.errors import ConfigError
from tpdm.core.io import read_metrics, write_atomically, write_json

FINGERPRINT = "fingerprint.json"
logger = logging.getLogger(__name__)


class Store:
    """Rows of every policy, one file each, and the pictures of those that are shown.

    Args:
        folder: of the evaluation; ``rows/`` and ``pictures/`` are below it.
        fingerprint: what the rows depend on; those of another fingerprint are thrown away.
        shared: by several evaluations, so that rows of another fingerprint may be somebody's.

    Raises:
        ConfigError: a shared folder has rows of another fingerprint.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], *, shared: bool = False) -> None:
        self.folder = folder
        path = folder / "rows" / FINGERPRINT
        with self.held(FINGERPRINT):
            before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            if before == fingerprint:
                return
            if before is not None:
                other = ", ".join(sorted(k for k in {*before, *fingerprint} if before.get(k) != fingerprint.get(k)))
                if shared:
                    raise ConfigError(
                        f"got evaluation.baseline_cache = {folder}, whose rows have another {other}, expected those "
                        "of this evaluation; name another folder, or remove it."
                    )
                logger.warning("rows in %s are of another %s: they are thrown away and measured anew", folder, other)
            for name in ("rows", "pictures"):
                shutil.rmtree(folder / name, ignore_errors=True)
            write_json(path, fingerprint)

    @contextmanager
    def held(self, policy: str) -> Iterator[None]:
        """Keeps others from measuring this policy meanwhile; waits for whoever does."""
        path = self.folder / "locks" / f"{_plain(policy)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    def rows(self, policy: str) -> list[dict[str, Any]]:
        """Rows of a policy, in the order they were measured; a line that a kill cut off is left out."""
        return read_metrics(self._path(policy))

    def add(self, policy: str, rows: Sequence[dict[str, Any]], images_BHWC: np.ndarray | None) -> None:
        """Appends rows; their pictures (uint8) are written first, so that a row never lacks its own."""
        if images_BHWC is not None:
            for row, image in zip(rows, images_BHWC, strict=True):
                path = self.folder / "pictures" / policy / f"{row['index']:04d}.png"
                write_atomically(path, partial(Image.fromarray(image).save, format="PNG"))
        path = self._path(policy)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        with path.open("ab") as file:
            # A cut-off line would swallow the next one.
            file.truncate(whole.rfind(b"\n") + 1)
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def _path(self, policy: str) -> Path:
        return self.folder / "rows" / f"{_plain(policy)}.jsonl"


def _plain(policy: str) -> str:
    """A name for files."""
    return re.sub(r"[^\w.-]+", "_", policy)
