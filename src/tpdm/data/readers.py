"""Readers of prompt sources: text, JSON lines, JSON, CSV, TSV, parquet files, and data sets of the Hub.

Each reader yields (position, entry) pairs. The position is for error messages.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tpdm.core.errors import PromptError
from tpdm.core.file_errors import first_line
from tpdm.data.columns import Columns

if TYPE_CHECKING:
    from _csv import Reader

Entries = Iterator[tuple[str, Any]]


def undecodable_line(path: Path) -> int:
    """Returns the number of the first line that is not UTF-8. The decoder's position is relative to its buffer."""
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
            f"{columns.source}: The file contains one {type(values).__name__}. It must be an array of prompts. Put it "
            "in [ ]."
        )
    return ((f"entry {number}", value) for number, value in enumerate(values, start=1))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise PromptError(f"{where}: The text is not valid JSON ({error}). Correct it.") from error


def _read_csv(file: TextIO, columns: Columns) -> Entries:
    # If the header has blanks after its commas, those of the rows are not part of the cells. A quote may follow them.
    spaced = ", " in file.readline()
    file.seek(0)
    return _read_table(csv.reader(file, strict=True, skipinitialspace=spaced), columns)


def _read_tsv(file: TextIO, columns: Columns) -> Entries:
    # Spreadsheets quote cells, most other tools do not. Quotes are read only if the whole file is valid with them.
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
    """Yields the used cells of each row by column. Rows without any text are skipped."""
    try:
        rows = (row for row in reader if any(cell.strip() for cell in row))
        header = next(rows, None)
        if header is None:
            return
        chosen = columns.choose(header, f"line {reader.line_num}")
        used = {name: header.index(name) for name in chosen if name is not None}
        for row in rows:
            # The usual cause is a comma in an unquoted prompt.
            if any(cell.strip() for cell in row[len(header) :]):
                raise PromptError(
                    f"{columns.source}, line {reader.line_num}: The row has more cells than the header. Quote the text."
                )
            yield (
                f"line {reader.line_num}",
                {name: row[place] if place < len(row) else None for name, place in used.items()},
            )
    except csv.Error as error:
        raise PromptError(
            f"{columns.source}, line {reader.line_num}: The table is not valid ({error}). Correct it."
        ) from error


READERS: dict[str, Callable[[TextIO, Columns], Entries]] = {
    ".txt": _read_lines,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}

Rows = Iterator[tuple[str, dict[str, Any]]]


def read_parquet(path: Path, columns: Columns) -> Rows:
    """Yields (position, row) of every row of a parquet file.

    Args:
        path: Path of the file.
        columns: Columns to read. Others, such as images, are not read.

    Raises:
        PromptError: pyarrow cannot be imported, the file is damaged, or a column is missing.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:  # also raised if the package is too new for another one
        raise PromptError(_missing(str(path), error)) from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(columns=_used(columns, file.schema_arrow.names)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, ArrowException) as error:
        raise PromptError(_unreadable(str(path), number, error)) from error


def read_hub(name: str, columns: Columns, subset: str | None = None, split: str = "train") -> Rows:
    """Yields (position, row) of every row of a data set of the Hub, streamed: unused rows are not fetched.

    Args:
        name: "owner/name", or a folder that ``datasets`` can read.
        columns: Columns to read, as for ``read_parquet``.
        subset: Subset of the data set, which ``datasets`` calls name or configuration. None uses the default.
        split: Split of the data set, default "train".

    Raises:
        PromptError: ``datasets`` cannot be imported, the data set cannot be read, or a column is missing.
    """
    source, number = f"hub:{name}", 0
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:  # also raised if the package is too new for another one
        raise PromptError(_missing(source, error)) from error
    try:
        rows = load_dataset(name, subset, split=split, streaming=True)
        if rows.column_names is not None:  # some formats know their columns only after a row was read
            rows = rows.select_columns(_used(columns, rows.column_names))
        for row in rows:
            number += 1
            yield f"row {number}", row
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError) as error:
        raise PromptError(_unreadable(source, number, error)) from error


def _used(columns: Columns, names: Sequence[str]) -> list[str]:
    return [name for name in columns.choose(names) if name is not None]


def _missing(source: str, error: ImportError) -> str:
    missing = f"Package {error.name} is missing" if isinstance(error, ModuleNotFoundError) else first_line(error)
    return f"{source}: {missing}. Parquet files and data sets need extra packages. Run pip install -U 'tpdm[data]'."


def _unreadable(source: str, rows: int, error: Exception) -> str:
    return f"{source}: The source cannot be read after {rows} rows ({first_line(error)}). Choose another source."
