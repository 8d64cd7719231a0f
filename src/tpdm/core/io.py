"""Files: paths as a shell reads them, atomic writes of files and folders, safetensors, JSON, digests, image bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from tpdm.core.errors import ConfigError, TrainingError

PathOrName = TypeVar("PathOrName", bound=str | Path)

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
_CHUNK = 2**20  # bytes read at a time


def expand(place: PathOrName) -> PathOrName:
    """Expand ``~``, ``~user``, ``$NAME`` and ``${NAME}`` as a shell does.

    A shell expands them on a command line, but not in a recipe, in Python, or after ``--out=``. If a file of the
    literal name exists, the name is not expanded. Only ``~`` and ``~/...`` always mean the home folder.

    Args:
        place: Path, hub id or other name. Names without ``~`` at the start and without ``$`` are returned unchanged.

    Raises:
        ConfigError: The user does not exist, or the variable is not set or empty.

    Example:
        >>> expand("owner/name")
        'owner/name'
        >>> expand("~/tpm") == os.path.expanduser("~") + "/tpm"
        True
    """
    text = str(place)
    home = text == "~" or text.startswith("~/")
    if not home and ((text[:1] != "~" and "$" not in text) or os.path.lexists(text)):
        return place
    full = os.path.expanduser(text)
    if full == text and text.startswith("~"):
        user = text.partition("/")[0]
        raise ConfigError(f"The path {text!r} needs the home folder of {user}, which does not exist. Write it out.")

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ConfigError(
                f"The path {text!r} uses the variable {name}, which is not set. Set it, or write the path out."
            )
        return os.environ[name]

    return type(place)(_VARIABLE.sub(value, full))


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write a temporary file and rename it, so that a reader never sees half a file.

    Args:
        path: Final name. Missing parent folders are created.
        write: Function that fills the temporary file it is given.

    Returns:
        The final path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def replaced_folder(folder: Path, *, keep_others: bool = False, prefix: str | None = None) -> Iterator[Path]:
    """Fill a new folder that replaces ``folder`` when the block ends without an error.

    After an error, the old folder is as it was.

    Args:
        folder: Final name. Missing parent folders are created.
        keep_others: Move files of the old folder that the new one does not have. False deletes them.
        prefix: Start of the temporary name, in the same parent folder. None is ``.NAME.``.

    Yields:
        The new, empty folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix or f".{folder.name}."))
    new, old = temporary / "new", temporary / "old"
    new.mkdir()
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in old.iterdir() if keep_others and old.exists() else ():
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically, indented, with keys in their given order."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file atomically. Tensors are made contiguous and moved to the CPU."""
    from safetensors.torch import save_file

    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    return write_atomically(path, lambda p: save_file(ready, p, metadata=metadata))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        (tensors on the CPU, metadata).
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as f:
        # safe_open is no mapping: keys() is its only way to list names.
        return {k: f.get_tensor(k) for k in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118


def sha256(path: Path) -> str:
    """Compute the sha256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def to_uint8(images_B3HW: Tensor) -> np.ndarray:
    """Convert images to bytes, for files and for scorers that read pixels.

    Args:
        images_B3HW: Images in [0, 1], shape (B, 3, H, W), any device and floating dtype.

    Returns:
        uint8 array of shape (B, H, W, 3).

    Example:
        >>> import torch
        >>> to_uint8(torch.tensor([0.0, 0.5, 2.0]).view(1, 3, 1, 1)).tolist()
        [[[[0, 128, 255]]]]
    """
    pixels_BHWC: np.ndarray = (
        (images_B3HW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    )
    return pixels_BHWC


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete rows of a JSON Lines file. A last line without a line break is skipped.

    A killed process can leave such a line.

    Args:
        path: File of the rows, such as ``metrics.jsonl`` of a run. A missing file has no rows.

    Raises:
        TrainingError: A complete line is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{where} is damaged ({error}). It must be a JSON object. Remove that line.") from error
