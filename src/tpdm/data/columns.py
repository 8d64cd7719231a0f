"""Which columns of a table, or keys of JSON objects, hold the prompt and the negative prompt; the others are named."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tpdm.core.errors import PromptError

logger = logging.getLogger(__name__)
# Usual names, folded. The other ones of the prompt count only where no column is called prompt.
PROMPT, OTHER_PROMPTS = ("prompt",), ("prompts", "text", "caption", "positive", "positive prompt")
NEGATIVES = ("negative", "negative prompt", "negative prompts", "neg", "neg prompt")
_HINTS = {"prompt": "prompts.column, --prompt-column", "negative prompt": "prompts.negative, --negative-column"}


def fold(name: str) -> str:
    """A name without case, outer blanks, and the kind of its separators: `` Negative_Prompt`` is "negative prompt"."""
    return " ".join(re.split(r"[\s_-]+", name.strip(" \t\r\n\ufeff").casefold()))


@dataclass
class Columns:
    """The columns of one source that are read.

    Attributes:
        source: for messages.
        prompt: name of the prompt's; None takes the one with a usual name.
        negative: name of the negative prompt's; None takes the one with a usual name, where there is one.
    """

    source: str
    prompt: str | None = None
    negative: str | None = None
    _known: dict[tuple[str, ...], tuple[str, str | None]] = field(default_factory=dict, init=False, repr=False)

    def choose(self, names: Sequence[str], where: str = "") -> tuple[str, str | None]:
        """The columns of the prompt and of the negative prompt among these.

        Args:
            names: all columns of a table, or the keys of one JSON object.
            where: in the source, for the error.

        Raises:
            PromptError: there is no such column, or more than one.
        """
        key = tuple(names)
        if key not in self._known:
            place = f"{self.source}, {where}" if where else self.source
            prompt = _find(key, self.prompt, "prompt", place)
            assert prompt is not None
            self._known[key] = prompt, _find(key, self.negative, "negative prompt", place, besides=prompt)
        return self._known[key]

    def refuse_plain(self, where: str) -> None:
        """Refuses a plain text, which has no columns, where one was named.

        Raises:
            PromptError: one was. "prompt" is no such name: older recipes were written with it.
        """
        named = [name for name in (self.prompt, self.negative) if name is not None]
        if named and not (named == [self.prompt] and fold(named[0]) in PROMPT):
            raise PromptError(
                f"{self.source}, {where}: got a plain text, which has no column {named[-1]!r}: give objects or a "
                "table, or name no column."
            )

    def tell(self) -> None:
        """A warning in the log that names the columns that were not used, if any; of several processes the first."""
        unused = {name: None for names, pair in self._known.items() for name in names if name not in pair}
        unused.pop("", None)  # a spreadsheet's empty columns
        if not unused or os.environ.get("RANK", "0") != "0":
            return
        pairs = list(self._known.values())
        negative = next((f"{name!r} as its negative prompt" for _, name in pairs if name), "no negative prompt")
        words = "%s: reads column %r as the prompt and %s; not used: %s"
        logger.warning(words, self.source, pairs[0][0], negative, ", ".join(unused))


def _find(names: Sequence[str], wanted: str | None, role: str, place: str, besides: str | None = None) -> str | None:
    """The one column of a role; None where none was named and the role may be empty."""
    free = [name for name in names if name != besides]
    if wanted is not None:
        found = [name for name in free if name == wanted] or [name for name in free if fold(name) == fold(wanted)]
    elif role == "prompt":
        found = [name for name in free if fold(name) in PROMPT] or [n for n in free if fold(n) in OTHER_PROMPTS]
    else:
        found = [name for name in free if fold(name) in NEGATIVES]
    if len(found) == 1:
        return found[0]
    if not found and wanted is None and role != "prompt":
        return None
    if not found:
        missing = repr(wanted) if wanted is not None else "'prompt', 'text' or 'caption'"
        raise PromptError(
            f"{place}: no column {missing}, there are {sorted(names)}: name one of these ({_HINTS[role]})."
        )
    if len(set(found)) == 1:
        raise PromptError(f"{place}: the column {found[0]!r} stands twice: name one otherwise.")
    several = " and ".join(repr(name) for name in found)
    raise PromptError(
        f"{place}: got the columns {several}, each of which may be the {role}: name one ({_HINTS[role]})."
    )
