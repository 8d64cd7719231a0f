"""Prompts of several runs encoded in one call of the text encoders; what was asked for lately is not encoded again."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpdm.sampling.batching.micro_batcher import MicroBatcher, Reservation
from tpdm.sampling.prompt_embeddings import ENCODED

# Their tokenizers fill every prompt up to the same length, so that a text does not depend on its neighbours. The others
# fill up to the longest of the batch, or give lists: one call for each.
PADDED = frozenset({"StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline"})
KEPT_BYTES = 64 * 2**20  # of embeddings, on the pipeline's device; 10 prompts of guided SD3 in half precision

Encoded = tuple[Any, ...]  # what ``encode_prompt`` returns


@dataclass(frozen=True)
class _Text:
    """One call of ``encode_prompt``: the pipeline that makes it, the texts by name, and everything else."""

    pipe: Any
    texts: tuple[tuple[str, str | None], ...]
    others: dict[str, Any]


class TextEncoderBatcher:
    """Encodes for the runs of one pipeline.

    Args:
        pipe: whose class it is for.
        most: prompts in one call; 1 gives the very bits of a run alone.
        kept_bytes: of embeddings that are kept; 0 keeps none.
    """

    def __init__(self, pipe: Any, most: int, kept_bytes: int = KEPT_BYTES) -> None:
        self._class = type(pipe)
        self._names = ENCODED.get(self._class.__name__)
        self._most = most if self._class.__name__ in PADDED else 1
        self._desk: MicroBatcher[_Text, Encoded] = MicroBatcher(self._encode)
        self._kept = _Kept(kept_bytes)

    @property
    def knows(self) -> bool:
        """Whether the class is known; the runs of any other encode under a lock of their own."""
        return self._names is not None

    @property
    def calls(self) -> int:
        """Calls of the text encoders."""
        return self._desk.calls

    def expect(self) -> Reservation:
        """See ``MicroBatcher.expect``."""
        return self._desk.expect()

    def at(self, pipe: Any, expected: Reservation | None) -> Callable[..., Encoded]:
        """``encode_prompt`` for one run.

        Args:
            pipe: of the run.
            expected: of the run, withdrawn at its first call; None where nobody waits for it.
        """
        signature = inspect.signature(self._class.encode_prompt)

        def encode_prompt(*args: Any, **kwargs: Any) -> Encoded:
            given = signature.bind(pipe, *args, **kwargs).arguments
            given.pop("self")
            return self._ask(pipe, given, expected)

        return encode_prompt

    def _ask(self, pipe: Any, given: dict[str, Any], expected: Reservation | None) -> Encoded:
        texts = {name: _one_text(value) for name, value in given.items() if _is_text(name)}
        others = {name: value for name, value in given.items() if name not in texts}
        simple = all(isinstance(value, str | None) for value in texts.values())
        if not simple or not _is_plain(others):
            # Embeddings, or several images: as it is, and alone.
            return self._desk.ask(object(), _Text(pipe, (), given), 1, expected)
        # Which texts there are is a matter of the kind, because a call has either a list under a name or nothing.
        there = tuple((name, value is None) for name, value in sorted(texts.items()))
        kind = (there, tuple(sorted(others.items(), key=lambda item: item[0])))
        task = _Text(pipe, tuple(sorted(texts.items())), others)
        found = self._kept.get((kind, task.texts))
        if found is None:
            found = self._desk.ask(kind, task, self._most, expected)
            self._kept.put((kind, task.texts), found)
        elif expected is not None:
            expected.release_reservation()
        return found

    def _encode(self, tasks: Sequence[_Text]) -> list[Encoded]:
        first = tasks[0]
        encode = self._class.encode_prompt
        if not first.texts:
            return [encode(first.pipe, **first.others)]
        rows = list(dict.fromkeys(task.texts for task in tasks))  # equal prompts once
        if len(rows) == 1:
            texts = {name: text if text is None else [text] for name, text in rows[0]}
            return [encode(first.pipe, **texts, **first.others)] * len(tasks)
        names = [name for name, _ in rows[0]]
        columns = {name: _column([dict(row)[name] for row in rows]) for name in names}
        whole = encode(first.pipe, **columns, **first.others)
        parts = {row: tuple(_row(*item, i) for item in self._named(whole)) for i, row in enumerate(rows)}
        return [parts[task.texts] for task in tasks]

    def _named(self, whole: Encoded) -> list[tuple[str | None, Any]]:
        assert self._names is not None
        return list(zip(self._names, whole, strict=True))


class _Kept:
    """Embeddings by what was asked, the oldest leave first."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._mutex = threading.Lock()
        self._found: OrderedDict[Hashable, Encoded] = OrderedDict()

    def get(self, key: Hashable) -> Encoded | None:
        with self._mutex:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: Hashable, value: Encoded) -> None:
        with self._mutex:
            if key in self._found:
                return
            self._found[key] = value
            self._bytes += _size(value)
            while self._bytes > self._most:
                self._bytes -= _size(self._found.popitem(last=False)[1])


def _is_text(name: str) -> bool:
    return name.startswith(("prompt", "negative_prompt")) and not name.endswith(("embeds", "mask"))


def _one_text(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_plain(others: dict[str, Any]) -> bool:
    """One image, and nothing but what can be compared."""
    single = all(others.get(name, 1) == 1 for name in ("num_images_per_prompt", "num_videos_per_prompt"))
    return single and all(isinstance(v, Hashable) and not isinstance(v, Tensor) for v in others.values())


def _column(texts: list[str | None]) -> list[str] | None:
    found = [text for text in texts if text is not None]
    return found or None


def _row(name: str | None, value: Any, i: int) -> Any:
    # Position ids have no name: a call makes them anew, and they hold for any row.
    return value[i : i + 1].clone() if name is not None and isinstance(value, Tensor) else value


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
