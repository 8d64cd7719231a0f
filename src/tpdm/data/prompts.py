"""Prompts from files and data sets, with an id that depends on their content, and the held-out split."""

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

# Published results depend on this salt: another one moves prompts between the sides of the split.
SPLIT_SALT = "tpdm held-out 1\n"
PARQUET, HUB = ".parquet", "hub:"


@dataclass(frozen=True)
class Prompt:
    """A prompt and its negative prompt.

    Attributes:
        text: Text of the prompt, not blank.
        negative: Negative prompt. None uses the pipeline's own.
        id: Group id in [0, 2**63): a hash of text and negative, the same on every machine.

    Raises:
        PromptError: The text is blank, or contains half a surrogate pair.

    Example:
        >>> Prompt("a red circle").id == Prompt("a red circle").id
        True
    """

    text: str
    negative: str | None = None
    id: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise PromptError(f"{self.text!r} is an empty prompt. It must contain text. Write one or remove it.")
        # JSON distinguishes a missing negative prompt from an empty one, whatever characters the texts contain.
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
    """Reads prompts in the order of the file. A log message names unused columns.

    Args:
        path: File in UTF-8: ``.txt`` (one prompt per line, blank lines are skipped), ``.jsonl``, ``.json`` (an array of
            texts or objects), ``.csv`` or ``.tsv`` (with a header), or ``.parquet``.
        column: Column or key of the prompt. Case, outer blanks and the kind of separator are ignored. None uses the one
            called prompt, or else another usual name (``tpdm.data.columns``).
        limit: Maximum number of prompts, >= 1. The rest of the file is not read. None reads all.
        negative: Column or key of the negative prompt. None uses the one with a usual name, if there is one.
        distinct: Whether to leave out repeated prompts. Default True.

    Returns:
        At least one prompt.

    Raises:
        PromptError: The suffix is unknown, the file is empty or cannot be read, a column is missing or ambiguous, or an
            entry is not a text. The message contains the line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "prompts.csv"
        >>> _ = file.write_text("caption,negative\\na red circle,blurry\\na blue ring,\\n")
        >>> [(prompt.text, prompt.negative) for prompt in load_prompts(file)]
        [('a red circle', 'blurry'), ('a blue ring', None)]
    """
    path = Path(expand(path))
    suffix = path.suffix.lower()
    read = READERS.get(suffix)
    if read is None and suffix != PARQUET:
        known = ", ".join([*READERS, PARQUET])
        raise PromptError(f"{path}: The suffix is {path.suffix!r}. It must be one of {known}. Convert the file.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = Columns(str(path), column, negative)
            entries = read_parquet(path, columns) if read is None else read(file, columns)
            return _collect(entries, columns, limit, distinct)
    except UnicodeDecodeError as error:
        line = undecodable_line(path)
        raise PromptError(f"{path}, line {line}: The text is not UTF-8. Save the file as UTF-8.") from error
    except OSError as error:
        raise PromptError(f"{path}: The file cannot be read ({error.strerror}). Choose a file of prompts.") from error


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a text is held out. It depends only on the text, and a larger fraction only adds texts.

    Args:
        text: Text of the prompt. Prompts that differ only in the negative prompt are on the same side.
        fraction: Held-out fraction of all texts, in [0, 1].

    Example:
        >>> is_held_out("a red circle", 0.0), is_held_out("a red circle", 1.0)
        (False, True)
    """
    return _hash64(SPLIT_SALT + text) < fraction * 2**64


def split_by_hash(prompts: Iterable[Prompt], held_out_fraction: float) -> tuple[list[Prompt], list[Prompt]]:
    """Splits prompts into (train, held_out), both in the given order. See ``is_held_out``.

    Args:
        prompts: Prompts to split.
        held_out_fraction: Held-out fraction, in [0, 1].

    Example:
        >>> train, held_out = split_by_hash([Prompt(f"circle {i}") for i in range(100)], 0.5)
        >>> len(train) + len(held_out)
        100
    """
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        (held_out if is_held_out(prompt.text, held_out_fraction) else train).append(prompt)
    return train, held_out


def _hash64(content: str) -> int:
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{content!r} contains half a surrogate pair. It must be Unicode text. Correct it."
        ) from error
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Leaves out repeated prompts without reading ahead."""
    seen: set[Prompt] = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def _collect(
    entries: Iterable[tuple[str, Any]], columns: Columns, limit: int | None, distinct: bool = True
) -> list[Prompt]:
    """Returns the first ``limit`` prompts of (position, entry) pairs, without repetitions if ``distinct``."""
    rows = (_prompt(value, columns, where) for where, value in entries)
    prompts = list(islice(_distinct(rows) if distinct else rows, limit))
    if not prompts:
        raise PromptError(f"{columns.source}: There is no prompt. At least one is needed. Add a line.")
    columns.log_unused()
    return prompts


def _prompt(value: Any, columns: Columns, where: str) -> Prompt:
    """Returns the prompt of one entry: a text, or a mapping with the text in one of its columns."""
    negative = None
    if isinstance(value, dict):
        column, other = columns.choose(tuple(value), where)
        value, negative = value[column], None if other is None else value[other]
    else:
        columns.refuse_plain(where)
    place = f"{columns.source}, {where}"
    if not isinstance(value, str) or not isinstance(negative, str | None):
        wrong = negative if isinstance(value, str) else value
        raise PromptError(f"{place}: The entry is {wrong!r}. It must be a text. Correct it.")
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
    """Reads the distinct prompts of a recipe, in their order.

    Args:
        source: ``tinyworld`` (generated captions), ``hub:owner/name`` (a data set), or a file (see ``load_prompts``).
        column: Column of the prompt, as for ``load_prompts``.
        limit: Maximum number of distinct prompts, >= 1. None reads all, or 20,000 for ``tinyworld``.
        negative: Column of the negative prompt, as for ``load_prompts``.
        subset: Subset of a data set. None uses its default.
        split: Split of a data set, default "train". The held-out split by content is made of its rows.

    Raises:
        PromptError: See ``load_prompts`` and ``tpdm.data.readers.read_hub``.

    Example:
        >>> len(load_source("tinyworld", limit=3))
        3
    """
    builtin = find_builtin(source)
    if builtin is not None:
        return [Prompt(text) for text in builtin.make_captions(limit or 20_000)]
    if source.startswith(HUB):
        if source == HUB:
            raise PromptError(f"{source}: The name of the data set is missing. Write hub:owner/name.")
        columns = Columns(source, column, negative)
        return _collect(read_hub(expand(source.removeprefix(HUB)), columns, subset, split), columns, limit)
    return load_prompts(source, column, limit, negative)
