"""Prompts in parquet files (pyarrow) and in data sets of the hub (``datasets``, which brings pyarrow), row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tpdm.prompt_columns import Columns
from tpdm.types import PromptError

Rows = Iterator[tuple[str, dict[str, Any]]]


def read_parquet(path: Path, columns: Columns) -> Rows:
    """(place, row) of every row of a parquet file.

    Args:
        path: the file.
        columns: that are read; all others, pictures for example, are left unread.

    Raises:
        PromptError: pyarrow cannot be imported, the file is damaged, or it has no such column.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:  # also one that is too new for another package
        raise PromptError(_missing(str(path), error)) from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(columns=_wanted(columns, file.schema_arrow.names)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, ArrowException) as error:
        raise PromptError(_unreadable(str(path), number, error)) from error


def read_hub(name: str, columns: Columns, subset: str | None = None, split: str = "train") -> Rows:
    """(place, row) of every row of a data set of the hub, streamed: nothing beyond what is used is fetched.

    Args:
        name: "owner/name", or a folder that ``datasets`` can read.
        columns: see ``read_parquet``.
        subset: of the data set (``datasets`` calls it name or configuration).
        split: of the data set.

    Raises:
        PromptError: ``datasets`` cannot be imported, the data set cannot be had, or it has no such column.
    """
    source, number = f"hub:{name}", 0
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:  # also one that is too new for another package
        raise PromptError(_missing(source, error)) from error
    try:
        rows = load_dataset(name, subset, split=split, streaming=True)
        if rows.column_names is not None:  # some formats do not tell before they are read
            rows = rows.select_columns(_wanted(columns, rows.column_names))
        for row in rows:
            number += 1
            yield f"row {number}", row
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError) as error:
        raise PromptError(_unreadable(source, number, error)) from error


def _wanted(columns: Columns, names: Sequence[str]) -> list[str]:
    return [name for name in columns.choose(names) if name is not None]


def _missing(source: str, error: ImportError) -> str:
    found = f"no package {error.name}" if isinstance(error, ModuleNotFoundError) else f"'{_first_line(error)}'"
    return f"{source}: got {found}, expected the packages of parquet files and data sets: pip install -U 'tpdm[data]'."


def _unreadable(source: str, rows: int, error: Exception) -> str:
    return f"{source}: cannot be read after {rows} rows ({_first_line(error)}): give another source."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
