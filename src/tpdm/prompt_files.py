"""Entries of prompt files that the standard library reads: text, JSON lines, JSON, comma- or tab-separated tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tpdm.prompt_columns import Columns
from tpdm.types import PromptError

if TYPE_CHECKING:
    from _csv import Reader

Entries = Iterator[tuple[str, Any]]


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


def _read_lines(file: TextIO, columns: Columns) -> Entries:
    return ((f"line {number}", line) for number, line in enumerate(file, start=1) if line.strip())


def _read_jsonl(file: TextIO, columns: Columns) -> Entries:
    return ((where, _parse(line, f"{columns.source}, {where}")) for where, line in _read_lines(file, columns))


def _read_json(file: TextIO, columns: Columns) -> Entries:
    values = _parse(file.read(), columns.source)
    if not isinstance(values, list):
        raise PromptError(
            f"{columns.source}: expected an array of prompts, got {type(values).__name__}: put it in [ ]."
        )
    return ((f"entry {number}", value) for number, value in enumerate(values, start=1))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise PromptError(f"{where}: is no JSON of prompts ({error}): correct it.") from error


def _read_csv(file: TextIO, columns: Columns) -> Entries:
    """Blanks behind commas are no part of the cells where the header has them, too: a quote may follow them."""
    spaced = ", " in file.readline()
    file.seek(0)
    return _read_table(csv.reader(file, strict=True, skipinitialspace=spaced), columns)


def _read_tsv(file: TextIO, columns: Columns) -> Entries:
    """Quotes count where the whole file can be read with them: spreadsheets write them, most other tools do not."""
    quoted = _is_quoted(file)
    reader = csv.reader(file, delimiter="\t", strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    return _read_table(reader, columns)


def _is_quoted(file: TextIO) -> bool:
    try:
        rows = csv.reader(file, delimiter="\t", strict=True)
        width = len(next(rows, []))
        return all(len(row) <= width for row in rows)
    except csv.Error:
        return False
    finally:
        file.seek(0)


def _read_table(reader: Reader, columns: Columns) -> Entries:
    """The used cells of each row, by the names of their columns; rows without any text are left out."""
    try:
        rows = (row for row in reader if any(cell.strip() for cell in row))
        header = next(rows, None)
        if header is None:
            return
        chosen = columns.choose(header, f"line {reader.line_num}")
        used = {name: header.index(name) for name in chosen if name is not None}
        for row in rows:
            # Most often a comma in an unquoted prompt.
            if any(cell.strip() for cell in row[len(header) :]):
                raise PromptError(
                    f"{columns.source}, line {reader.line_num}: more cells than the header has: quote the text."
                )
            yield (
                f"line {reader.line_num}",
                {name: row[place] if place < len(row) else None for name, place in used.items()},
            )
    except csv.Error as error:
        raise PromptError(
            f"{columns.source}, line {reader.line_num}: is no valid table ({error}): correct it."
        ) from error


READERS: dict[str, Callable[[TextIO, Columns], Entries]] = {
    ".txt": _read_lines,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
