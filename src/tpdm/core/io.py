"""Reading and writing files safely: temporary name then rename, safetensors and JSON only; and what a path means."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tpdm.core.errors import ConfigError, TrainingError

Place = TypeVar("Place", bound=str | Path)

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expand(place: Place) -> Place:
    """A path, or a name that may be one, with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` as a shell reads them.

    A shell does it before a command sees its words, but not in a recipe, in Python, or behind ``--out=``. Of these
    spellings only ``~`` and ``~/...`` always mean the home folder: what exists under the name as it stands is taken.

    Args:
        place: path, hub id or other name; those without ``~`` at the start and without ``$`` come back as they are.

    Raises:
        ConfigError: there is no such user, or the variable is not set, or is empty.
    """
    text = str(place)
    home = text == "~" or text.startswith("~/")
    if not home and ((text[:1] != "~" and "$" not in text) or os.path.lexists(text)):
        return place
    full = os.path.expanduser(text)
    if full == text and text.startswith("~"):
        user = text.partition("/")[0]
        raise ConfigError(f"got {text!r}, but there is no home folder {user}, expected a path: write it out.")

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise ConfigError(
                f"got {text!r}, whose variable {name} is not set, expected a path: set it, or write the path out."
            )
        return os.environ[name]

    return type(place)(_VARIABLE.sub(value, full))


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Calls ``write(temporary)`` and renames the result to ``path``: a reader never sees half a file.

    Args:
        path: final name; missing parent folders are made.
        write: fills the temporary file it is given.
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


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text atomically."""
    return write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Writes JSON (indented, sorted as given) atomically."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Writes a safetensors file atomically; tensors are made contiguous and moved to the CPU."""
    from safetensors.torch import save_file

    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    return write_atomically(path, lambda p: save_file(ready, p, metadata=metadata))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file: (tensors, metadata)."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as f:
        # safe_open is no mapping: keys() is its only way to list names.
        return {k: f.get_tensor(k) for k in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a last line cut off by a kill is left out.

    Raises:
        TrainingError: a line is no JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"got {where} damaged ({error}), expected a JSON object; remove that line") from error
