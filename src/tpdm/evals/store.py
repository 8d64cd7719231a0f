"""What an evaluation has measured so far, on disk: a killed one goes on with the image after the last."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tpdm.files import write_atomically, write_json
from tpdm.train.log import read_metrics

FINGERPRINT = "fingerprint.json"


class Store:
    """Rows of every policy, one file each, and the pictures of those that are shown.

    Args:
        folder: of the evaluation; ``rows/`` and ``pictures/`` are below it.
        fingerprint: what the rows depend on; those of another fingerprint are thrown away.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        path = folder / "rows" / FINGERPRINT
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if before != fingerprint:
            for name in ("rows", "pictures"):
                shutil.rmtree(folder / name, ignore_errors=True)
            write_json(path, fingerprint)

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
        return self.folder / "rows" / (re.sub(r"[^\w.-]+", "_", policy) + ".jsonl")
