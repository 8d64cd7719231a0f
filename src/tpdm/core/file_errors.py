"""What is wrong with a file of a model that somebody fetched, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

_LFS_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"  # what torch.save writes


def fault(path: Path) -> str | None:
    """What is visibly wrong with a file of a model, in words that follow "which"; None where nothing is.

    Of safetensors the header alone is read: it says where the file has to end.
    """
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if not head:
        return "is empty"
    if head == _LFS_POINTER:
        return "is a git-lfs pointer and not the file itself (git lfs pull brings it)"
    if path.suffix == ".json":
        return _json_fault(path)
    return _safetensors_fault(path, head) if path.suffix == ".safetensors" else None


def first_fault(paths: Iterable[Path]) -> str | None:
    """The first of some files with a ``fault``, and that, as "FILE, which ..."; None where there is none."""
    found = ((path, fault(path)) for path in paths)
    return next((f"{path}, which {words}" for path, words in found if words is not None), None)


def first_line(error: Exception) -> str:
    """The first line of what an error says, to go on after; the name of its class where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0].rstrip(" .:") if said else type(error).__name__


def _json_fault(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        return f"is no JSON ({error})"
    if not isinstance(content, dict):
        return "is no JSON object"
    # The list of the shards that hold a model's weights.
    shards = content.get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else set()
    absent = [name for name in names if not (path.parent / name).is_file()]
    return f"names {min(absent)}, which is not there" if absent else None


def _safetensors_fault(path: Path, head: bytes) -> str | None:
    from safetensors import SafetensorError, safe_open

    # A safetensors file begins with the length of its header, whose upper half is 0.
    if head.startswith(_ZIP) or (head[:1] == b"\x80" and any(head[4:8])):
        return "is a pickle, which is never loaded"
    try:
        with safe_open(str(path), framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"is cut short or damaged ({error})"
