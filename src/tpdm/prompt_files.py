"""Entries of prompt files that the standard library reads: text, JSON lines, JSON, comma- or tab-separated tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tpdm.types import PromptError


def undecodable_line(path: Path) -> int:
    """Number of the first line that is not UTF-8; the decoder only counts bytes within its buffer."""
    with path.open("rb") as file:
        return next((number for number, line in enumerate(file, start=1) if not _is_utf8(line)), 1)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read_lines(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    return ((f"line {number}", line) for number, line in enumerate(file, start=1) if line.strip())


def _read_jsonl(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    return ((where, _parse(line, f"{path}, {where}")) for where, line in _read_lines(file, path))


def _read_json(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    values = _parse(file.read(), str(path))
    if not isinstance(values, list):
        raise PromptError(f"{path}: expected an array of prompts, got {type(values).__name__}: put it in [ ].")
    return ((f"entry {number}", value) for number, value in enumerate(values, start=1))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise PromptError(f"{where}: is no JSON of prompts ({error}): correct it.") from error


def _read_table(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        names = reader.fieldnames or []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PromptError(f"{path}: the column {twice[0]!r} stands twice in the header: name one otherwise.")
        for row in reader:
            # Cells beyond the header have the key None: most often a comma in an unquoted prompt.
            if None in row:
                raise PromptError(f"{path}, line {reader.line_num}: more cells than the header has: quote the text.")
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.reader.line_num}: is no valid table ({error}): correct it.") from error


READERS: dict[str, Callable[[TextIO, Path], Iterator[tuple[str, Any]]]] = {
    ".txt": _read_lines,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
}
