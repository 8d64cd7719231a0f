"""Store the rows of an evaluation on disk, so that an interrupted evaluation resumes after its last image.

Several evaluations can share the store of baselines and run at the same time. A lock per policy prevents that two of
them measure the same policy.
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
    """Rows of every policy, one file per policy, and the images that the report can show.

    Args:
        folder: Folder of the evaluation. The store writes to ``rows/`` and ``pictures/`` in it.
        fingerprint: Everything that the rows depend on. Rows of another fingerprint are deleted.
        shared: Whether several evaluations use the folder. Rows of another fingerprint are then an error.

    Raises:
        ConfigError: If a shared folder contains rows of another fingerprint.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()), {"reward": "tinyworld"})
        >>> store.add("static-28", [{"index": 0, "score": 0.5}], None)
        >>> store.rows("static-28")
        [{'index': 0, 'score': 0.5}]
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
                        f"evaluation.baseline_cache is {folder}, whose rows differ in {other}. They must belong to "
                        "this evaluation. Use another folder, or delete this one."
                    )
                logger.warning("The rows in %s differ in %s. They are deleted and measured again.", folder, other)
            for name in ("rows", "pictures"):
                shutil.rmtree(folder / name, ignore_errors=True)
            write_json(path, fingerprint)

    @contextmanager
    def held(self, policy: str) -> Iterator[None]:
        """Lock a policy while it is measured. Wait if another process has the lock."""
        path = self.folder / "locks" / f"{_plain(policy)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    def rows(self, policy: str) -> list[dict[str, Any]]:
        """Return the rows of a policy in the order of measurement. An incomplete last line is ignored."""
        return read_metrics(self._path(policy))

    def add(self, policy: str, rows: Sequence[dict[str, Any]], images_BHWC: np.ndarray | None) -> None:
        """Append rows. Their images are written first, so that every row on disk has its image.

        Args:
            policy: Name of the policy.
            rows: One dictionary per image.
            images_BHWC: uint8 images of the rows. None writes no images.
        """
        if images_BHWC is not None:
            for row, image in zip(rows, images_BHWC, strict=True):
                path = self.folder / "pictures" / policy / f"{row['index']:04d}.png"
                write_atomically(path, partial(Image.fromarray(image).save, format="PNG"))
        path = self._path(policy)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        with path.open("ab") as file:
            # Remove an incomplete last line. Otherwise the next row would be appended to it.
            file.truncate(whole.rfind(b"\n") + 1)
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def _path(self, policy: str) -> Path:
        return self.folder / "rows" / f"{_plain(policy)}.jsonl"


def _plain(policy: str) -> str:
    """Return the name as a valid file name."""
    return re.sub(r"[^\w.-]+", "_", policy)
