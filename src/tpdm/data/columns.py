"""``Columns``: selects the columns (or JSON keys) of the prompt and of the negative prompt."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tpdm.core.errors import PromptError

logger = logging.getLogger(__name__)
# Usual names in the form of ``fold``. OTHER_PROMPTS are used only if no column is called prompt.
PROMPT, OTHER_PROMPTS = ("prompt",), ("prompts", "text", "caption", "positive", "positive prompt")
NEGATIVES = ("negative", "negative prompt", "negative prompts", "neg", "neg prompt")
_HINTS = {"prompt": "prompts.column, --prompt-column", "negative prompt": "prompts.negative, --negative-column"}


def fold(name: str) -> str:
    """Returns a name in lower case, without outer blanks, and with a blank for every separator.

    Example:
        >>> fold(" Negative_Prompt")
        'negative prompt'
    """
    return " ".join(re.split(r"[\s_-]+", name.strip(" \t\r\n\ufeff").casefold()))


@dataclass
class Columns:
    """Columns of one source.

    Attributes:
        source: Name of the source for messages.
        prompt: Column of the prompt. None uses the one with a usual name.
        negative: Column of the negative prompt. None uses the one with a usual name, if there is one.

    Example:
        >>> Columns("prompts.csv").choose(["id", "Caption", "neg"])
        ('Caption', 'neg')
    """

    source: str
    prompt: str | None = None
    negative: str | None = None
    _known: dict[tuple[str, ...], tuple[str, str | None]] = field(default_factory=dict, init=False, repr=False)

    def choose(self, names: Sequence[str], where: str = "") -> tuple[str, str | None]:
        """Returns the columns of the prompt and of the negative prompt. The second one is None if there is none.

        Args:
            names: All columns of a table, or the keys of one JSON object.
            where: Position in the source for the error.

        Raises:
            PromptError: There is no such column, or more than one.
        """
        key = tuple(names)
        if key not in self._known:
            place = f"{self.source}, {where}" if where else self.source
            prompt = _find(key, self.prompt, "prompt", place)
            assert prompt is not None
            self._known[key] = prompt, _find(key, self.negative, "negative prompt", place, taken=prompt)
        return self._known[key]

    def refuse_plain(self, where: str) -> None:
        """Refuses a plain text if a column was named.

        Raises:
            PromptError: A column was named. "prompt" is allowed, because older recipes contain it.
        """
        named = [name for name in (self.prompt, self.negative) if name is not None]
        if named and not (named == [self.prompt] and fold(named[0]) in PROMPT):
            raise PromptError(
                f"{self.source}, {where}: The entry is a plain text and has no column {named[-1]!r}. Use objects or a "
                "table, or name no column."
            )

    def log_unused(self) -> None:
        """Logs a warning with the columns that were not used, if any. Only the main process logs."""
        unused = {name: None for names, pair in self._known.items() for name in names if name not in pair}
        unused.pop("", None)  # a spreadsheet's empty columns
        if not unused or os.environ.get("RANK", "0") != "0":
            return
        pairs = list(self._known.values())
        negative = next((f"{name!r} as the negative prompt" for _, name in pairs if name), "no negative prompt")
        message = "%s: Reads column %r as the prompt and %s. Unused columns: %s."
        logger.warning(message, self.source, pairs[0][0], negative, ", ".join(unused))


def _find(names: Sequence[str], named: str | None, role: str, place: str, taken: str | None = None) -> str | None:
    """Returns the only column of a role. None if no column was named and the role is optional."""
    free = [name for name in names if name != taken]
    if named is not None:
        matches = [name for name in free if name == named] or [name for name in free if fold(name) == fold(named)]
    elif role == "prompt":
        matches = [name for name in free if fold(name) in PROMPT] or [n for n in free if fold(n) in OTHER_PROMPTS]
    else:
        matches = [name for name in free if fold(name) in NEGATIVES]
    if len(matches) == 1:
        return matches[0]
    if not matches and named is None and role != "prompt":
        return None
    if not matches:
        missing = repr(named) if named is not None else "'prompt', 'text' or 'caption'"
        raise PromptError(
            f"{place}: There is no column {missing}. The columns are {sorted(names)}. Name one ({_HINTS[role]})."
        )
    if len(set(matches)) == 1:
        raise PromptError(f"{place}: The column {matches[0]!r} occurs twice. Column names must differ. Rename one.")
    several = " and ".join(repr(name) for name in matches)
    raise PromptError(
        f"{place}: The columns {several} may each be the {role}. Only one can be used. Name it ({_HINTS[role]})."
    )
