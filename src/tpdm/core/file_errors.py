"""Reasons why a downloaded file of a model cannot be read, as text for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

_LFS_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"  # what torch.save writes


def describe_damage(path: Path) -> str | None:
    """Check whether a file of a model is visibly damaged.

    Only the header of a safetensors file is read. It contains the length of the file.

    Args:
        path: File of weights, or JSON file.

    Returns:
        A clause that follows "which", such as "is empty". None if nothing is wrong.

    Example:
        >>> path = Path("weights.safetensors")
        >>> _ = path.write_bytes(b"")
        >>> describe_damage(path)
        'is empty'
    """
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if not head:
        return "is empty"
    if head == _LFS_POINTER:
        return "is a git-lfs pointer and not the file itself (`git lfs pull` downloads it)"
    if path.suffix == ".json":
        return _json_fault(path)
    return _safetensors_fault(path, head) if path.suffix == ".safetensors" else None


def first_damage(paths: Iterable[Path]) -> str | None:
    """Return the first fault of several files, as "FILE, which ...". None if nothing is wrong."""
    faults = ((path, describe_damage(path)) for path in paths)
    return next((f"{path}, which {clause}" for path, clause in faults if clause is not None), None)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message without its full stop, or the name of its class.

    Example:
        >>> first_line(ValueError("No such key.\\nSee the manual.")), first_line(KeyError())
        ('No such key', 'KeyError')
    """
    message = str(error).strip()
    return message.splitlines()[0].rstrip(" .:") if message else type(error).__name__


def _json_fault(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not text
        return f"is not valid JSON ({error})"
    if not isinstance(content, dict):
        return "is not a JSON object"
    shards = content.get("weight_map")  # of the index of sharded weights
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    missing = [name for name in names if not (path.parent / name).is_file()]
    return f"names {min(missing)}, which is missing" if missing else None


def _safetensors_fault(path: Path, head: bytes) -> str | None:
    from safetensors import SafetensorError, safe_open

    # A safetensors file begins with the length of its header, 8 bytes, of which the upper four are 0.
    if head.startswith(_ZIP) or (head[:1] == b"\x80" and any(head[4:8])):
        return "is a pickle, which is never loaded"
    try:
        with safe_open(str(path), framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"is cut short or damaged ({error})"
