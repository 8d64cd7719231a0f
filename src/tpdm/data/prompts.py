"""Prompts: read from a file, named by a stable group id, split into training and held-out by content.

Files of text are read by ``tpdm.data.readers``, parquet files and data sets of the hub by ``tpdm.data.readers``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tpdm.core.builtins import find_builtin
from tpdm.core.errors import PromptError
from tpdm.core.io import expand
from tpdm.data.columns import Columns
from tpdm.data.readers import READERS, read_hub, read_parquet, undecodable_line

# Part of the meaning of every published result: another salt moves prompts between the sides of the split.
SPLIT_SALT = "tpdm held-out 1\n"
PARQUET, HUB = ".parquet", "hub:"


@dataclass(frozen=True)
class Prompt:
    """One text to make pictures of.

    Attributes:
        text: not blank.
        negative: negative prompt; None leaves the pipeline's own.
        id: group id in [0, 2**63), a hash of text and negative: the same on every machine, for ever.

    Raises:
        PromptError: the text is blank, or holds half a surrogate pair.
    """

    text: str
    negative: str | None = None
    id: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise PromptError(f"got the empty prompt {self.text!r}, expected a text: write one or remove the entry.")
        # JSON tells a missing negative prompt from an empty one, and no separator in the text can fool it.
        content = json.dumps([self.text, self.negative], ensure_ascii=False)
        object.__setattr__(self, "id", _hash64(content) >> 1)


def load_prompts(
    path: str | Path,
    column: str | None = None,
    limit: int | None = None,
    negative: str | None = None,
    *,
    distinct: bool = True,
) -> list[Prompt]:
    """Reads prompts in the order of the file, and names the columns that are not used in a warning of the log.

    Args:
        path: ``.txt`` (one prompt a line, blank lines skipped), ``.jsonl``, ``.json`` (an array), ``.csv`` or
            ``.tsv`` (with a header), in UTF-8, or ``.parquet``. A JSON entry is a text or an object.
        column: column or key of the text; None takes the one that is called prompt, or else the one with another usual
            name (``tpdm.data.columns``). Case, outer blanks, and ``_`` for a blank make no difference.
        limit: stop after this many prompts; the rest of the file is not looked at.
        negative: column or key of the negative prompt; None takes the one with a usual name, where there is one.
        distinct: leave repetitions out.

    Raises:
        PromptError: unknown suffix, unreadable or empty file, a column that is missing or could be one of several, or
            an entry that is no text (with its line).
    """
    path = Path(expand(path))
    suffix = path.suffix.lower()
    read = READERS.get(suffix)
    if read is None and suffix != PARQUET:
        known = ", ".join([*READERS, PARQUET])
        raise PromptError(f"{path}: got the suffix {path.suffix!r}, expected one of {known}: convert it.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = Columns(str(path), column, negative)
            entries = read_parquet(path, columns) if read is None else read(file, columns)
            return _collect(entries, columns, limit, distinct)
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}, line {undecodable_line(path)}: is not UTF-8, save the file as UTF-8.") from error
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror}): give a file of prompts.") from error


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a text is held out: depends on the text alone, and a larger fraction only adds texts.

    Args:
        text: of the prompt; two prompts that differ in the negative alone are on the same side.
        fraction: of all texts, in [0, 1].
    """
    return _hash64(SPLIT_SALT + text) < fraction * 2**64


def split_by_hash(prompts: Iterable[Prompt], held_out_fraction: float) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held_out), both in the given order; see ``is_held_out``."""
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        (held_out if is_held_out(prompt.text, held_out_fraction) else train).append(prompt)
    return train, held_out


def _hash64(content: str) -> int:
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"got {content!r} with half a surrogate pair, expected Unicode text: mend it.") from error
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Drops repetitions without reading ahead."""
    seen: set[Prompt] = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def _collect(
    entries: Iterable[tuple[str, Any]], columns: Columns, limit: int | None, distinct: bool = True
) -> list[Prompt]:
    """The first ``limit`` prompts of (place, entry) pairs, repetitions left out if ``distinct``."""
    rows = (_prompt(value, columns, where) for where, value in entries)
    prompts = list(islice(_distinct(rows) if distinct else rows, limit))
    if not prompts:
        raise PromptError(f"{columns.source}: holds no prompt, expected at least one: add a line.")
    columns.tell()
    return prompts


def _prompt(value: Any, columns: Columns, where: str) -> Prompt:
    """The prompt in one entry: a text, or a mapping with the text in one of its columns."""
    negative = None
    if isinstance(value, dict):
        column, other = columns.choose(tuple(value), where)
        value, negative = value[column], None if other is None else value[other]
    else:
        columns.refuse_plain(where)
    place = f"{columns.source}, {where}"
    if not isinstance(value, str) or not isinstance(negative, str | None):
        wrong = negative if isinstance(value, str) else value
        raise PromptError(f"{place}: expected a text, got {wrong!r}: correct the entry.")
    try:
        return Prompt(value.strip(), (negative or "").strip() or None)
    except PromptError as error:
        raise PromptError(f"{place}: {error}") from error


def load_source(
    source: str,
    column: str | None = None,
    limit: int | None = None,
    negative: str | None = None,
    subset: str | None = None,
    split: str = "train",
) -> list[Prompt]:
    """Distinct prompts of a recipe, in their order.

    Args:
        source: ``tinyworld`` (its captions, ``limit`` of them, 20,000 by default), ``hub:owner/name`` (a data set), or
            a file (see ``load_prompts``).
        column: of the text; see ``load_prompts``.
        limit: distinct prompts at most.
        negative: column of the negative prompt; see ``load_prompts``.
        subset: of a data set.
        split: of a data set; its rows are then split again by content hash.

    Raises:
        PromptError: see ``load_prompts`` and ``tpdm.data.readers.read_hub``.
    """
    builtin = find_builtin(source)
    if builtin is not None:
        return [Prompt(text) for text in builtin.make_captions(limit or 20_000)]
    if source.startswith(HUB):
        if source == HUB:
            raise PromptError(f"{source}: got no name of a data set, expected hub:owner/name: add it.")
        columns = Columns(source, column, negative)
        return _collect(read_hub(expand(source.removeprefix(HUB)), columns, subset, split), columns, limit)
    return load_prompts(source, column, limit, negative)
