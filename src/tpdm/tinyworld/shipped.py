"""Where the committed weights are."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

WEIGHTS = Path(str(resources.files("tpdm.tinyworld") / "weights"))


def weights_folder() -> Path:
    """Folder with ``pipeline/``, ``reward/`` and ``tpm/`` inside the installed package."""
    return WEIGHTS
