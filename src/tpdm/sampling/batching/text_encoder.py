"""Micro-batches of prompts for the text encoders, and a cache of recent embeddings."""

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

# The tokenizers of these pipelines pad every prompt to the same length, so that an embedding does not depend on the
# other prompts of the batch. Other pipelines pad to the longest prompt or return lists, and get one call per prompt.
FIXED_LENGTH = frozenset(
    {"StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline"}
)
CACHE_BYTES = 64 * 2**20  # on the device of the pipeline; 10 prompts of guided SD3 in half precision

Encoded = tuple[Any, ...]  # result of ``encode_prompt``


@dataclass(frozen=True)
class _PromptCall:
    """One call of ``encode_prompt``.

    Attributes:
        pipe: Pipeline that makes the call.
        texts: Prompts by name of their argument, sorted.
        arguments: All other arguments.
    """

    pipe: Any
    texts: tuple[tuple[str, str | None], ...]
    arguments: dict[str, Any]


class TextEncoderBatcher:
    """Encodes the prompts of all runs of one pipeline.

    Args:
        pipe: Pipeline whose class decides how prompts are encoded.
        max_batch_size: Maximum number of prompts in one call. 1 gives the same bits as a run on its own.
        cache_bytes: Maximum size of the cached embeddings in bytes. 0 disables the cache.
    """

    def __init__(self, pipe: Any, max_batch_size: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._class = type(pipe)
        self._names = ENCODED.get(self._class.__name__)
        self._max_batch_size = max_batch_size if self._class.__name__ in FIXED_LENGTH else 1
        self._batcher: MicroBatcher[_PromptCall, Encoded] = MicroBatcher(self._encode)
        self._cache = EmbeddingCache(cache_bytes)

    @property
    def supported(self) -> bool:
        """Whether the pipeline class is supported. Runs of other classes encode under a lock of their own."""
        return self._names is not None

    @property
    def calls(self) -> int:
        """Number of calls of the text encoders."""
        return self._batcher.calls

    def reserve(self) -> Reservation:
        """See ``MicroBatcher.reserve``."""
        return self._batcher.reserve()

    def make_encode_prompt(self, pipe: Any, reservation: Reservation | None) -> Callable[..., Encoded]:
        """Returns the ``encode_prompt`` of one run.

        Args:
            pipe: Pipeline of the run.
            reservation: Reservation of the run, released by its first call. None if there is none.
        """
        signature = inspect.signature(self._class.encode_prompt)

        def encode_prompt(*args: Any, **kwargs: Any) -> Encoded:
            arguments = signature.bind(pipe, *args, **kwargs).arguments
            arguments.pop("self")
            return self._submit(pipe, arguments, reservation)

        return encode_prompt

    def _submit(self, pipe: Any, arguments: dict[str, Any], reservation: Reservation | None) -> Encoded:
        texts = {name: _unwrap(value) for name, value in arguments.items() if _is_text(name)}
        others = {name: value for name, value in arguments.items() if name not in texts}
        single = all(isinstance(value, str | None) for value in texts.values())
        if not single or not _is_batchable(others):
            # Embeddings or several images: passed on unchanged, in a call of their own.
            return self._batcher.submit(object(), _PromptCall(pipe, (), arguments), 1, reservation)
        # The key contains which texts are None, because a call has either a list under a name or nothing.
        missing = tuple((name, value is None) for name, value in sorted(texts.items()))
        key = (missing, tuple(sorted(others.items(), key=lambda item: item[0])))
        call = _PromptCall(pipe, tuple(sorted(texts.items())), others)
        encoded = self._cache.get((key, call.texts))
        if encoded is None:
            encoded = self._batcher.submit(key, call, self._max_batch_size, reservation)
            self._cache.put((key, call.texts), encoded)
        elif reservation is not None:
            reservation.release()
        return encoded

    def _encode(self, calls: Sequence[_PromptCall]) -> list[Encoded]:
        first = calls[0]
        encode = self._class.encode_prompt
        if not first.texts:
            return [encode(first.pipe, **first.arguments)]
        rows = list(dict.fromkeys(call.texts for call in calls))  # equal prompts once
        if len(rows) == 1:
            texts = {name: text if text is None else [text] for name, text in rows[0]}
            return [encode(first.pipe, **texts, **first.arguments)] * len(calls)
        names = [name for name, _ in rows[0]]
        columns = {name: _column([dict(row)[name] for row in rows]) for name in names}
        batch = encode(first.pipe, **columns, **first.arguments)
        assert self._names is not None
        named = list(zip(self._names, batch, strict=True))
        parts = {row: tuple(_row(*item, i) for item in named) for i, row in enumerate(rows)}
        return [parts[call.texts] for call in calls]


class EmbeddingCache:
    """LRU cache of embeddings.

    Args:
        max_bytes: Maximum size of all entries in bytes.

    Attributes:
        bytes: Size of all entries in bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.bytes = max_bytes, 0
        self._mutex = threading.Lock()
        self._entries: OrderedDict[Hashable, Encoded] = OrderedDict()

    def get(self, key: Hashable) -> Encoded | None:
        """Returns an entry and makes it the most recent one. None if there is no such entry."""
        with self._mutex:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Hashable, value: Encoded) -> None:
        """Adds an entry, unless there is one, and removes the least recent ones that no longer fit."""
        with self._mutex:
            if key in self._entries:
                return
            self._entries[key] = value
            self.bytes += _num_bytes(value)
            while self.bytes > self._max_bytes:
                self.bytes -= _num_bytes(self._entries.popitem(last=False)[1])


def _is_text(name: str) -> bool:
    return name.startswith(("prompt", "negative_prompt")) and not name.endswith(("embeds", "mask"))


def _unwrap(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_batchable(arguments: dict[str, Any]) -> bool:
    """Whether a call is for one image, and all its arguments can be compared."""
    single = all(arguments.get(name, 1) == 1 for name in ("num_images_per_prompt", "num_videos_per_prompt"))
    return single and all(isinstance(v, Hashable) and not isinstance(v, Tensor) for v in arguments.values())


def _column(texts: list[str | None]) -> list[str] | None:
    given = [text for text in texts if text is not None]
    return given or None


def _row(name: str | None, value: Any, i: int) -> Any:
    # Position ids have no name: they are the same for every row.
    return value[i : i + 1].clone() if name is not None and isinstance(value, Tensor) else value


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0
