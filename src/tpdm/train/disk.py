"""A full disk ends a run with a sentence, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tpdm.types import TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, over the size that a file may have
# Its errors hold the number in their text alone: "(os error 28)", "Os { code: 28, ..." in old ones.
_SAFETENSORS = re.compile(r"(?:os error|Os \{ code:) (\d+)")


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turns errors of a full disk inside the block into a ``TrainingError``; every other error passes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _number(error) not in FULL:
            raise
        raise TrainingError(
            f"got no more room for the files of {folder} ({' '.join(str(error).split())}), expected some; free some "
            "and give the same command, it goes on from the last checkpoint"
        ) from error


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _SAFETENSORS.search(str(error))
    return int(found[1]) if found else None
