"""Denoiser calls of several pipelines as one: which calls go together, how rows are joined and parted again."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpdm.pipelines.active_rows import map_leaves
from tpdm.pipelines.registry import DenoiserSpec
from tpdm.pipelines.time_mapping import PerSampleTimesteps
from tpdm.sampling.batching.proxy import DenoiserOutput, RawFeatures


@dataclass(frozen=True)
class DenoiserCall:
    """One call by name.

    Attributes:
        rows: B, the length of the latents.
        arguments: times are one per row.
        signature: calls of equal signatures can be computed as one: all that is not a matter of rows is equal.
    """

    rows: int
    arguments: dict[str, Any]
    signature: Hashable


class CallSigner:
    """Reads the calls of ONE pipeline run; remembers what was compared by value, because it stays the same object.

    Args:
        entry: of the denoiser.
    """

    def __init__(self, entry: DenoiserSpec) -> None:
        self._entry = entry
        self._digests: dict[tuple[str, ...], tuple[Tensor, str]] = {}

    def read(self, arguments: Mapping[str, Any]) -> DenoiserCall:
        """The call with its signature."""
        rows = len(arguments[self._entry.sample])
        tiled = {name: _per_row(value, rows) for name, value in arguments.items()}
        parts = tuple((name, self._sign(value, rows, (name,))) for name, value in sorted(tiled.items()))
        return DenoiserCall(rows, tiled, (rows, parts))

    def _sign(self, value: Any, rows: int, path: tuple[str, ...]) -> Hashable:
        if isinstance(value, Tensor):
            kind = (value.dtype, value.device, _has_rows(value, rows, path[0], self._entry))
            if kind[-1]:
                return (*kind, value.shape[1:])
            return (*kind, value.shape, self._digest(value, path))
        if isinstance(value, Mapping):
            return tuple((key, self._sign(item, rows, (*path, str(key)))) for key, item in value.items())
        if path == (self._entry.sample,) or (path[0] in self._entry.listed and _is_tensor_list(value)):
            return tuple((item.dtype, item.shape) for item in value)
        if isinstance(value, list | tuple):
            return tuple(self._sign(item, rows, (*path, str(i))) for i, item in enumerate(value))
        return value if isinstance(value, Hashable) else id(value)

    def _digest(self, value: Tensor, path: tuple[str, ...]) -> str:
        known = self._digests.get(path)
        if known is None or known[0] is not value:
            plain = value.detach().cpu().contiguous()
            digest = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes() if plain.ndim else repr(plain).encode())
            known = self._digests[path] = (value, digest.hexdigest())
        return known[1]


def collate_calls(calls: Sequence[DenoiserCall], entry: DenoiserSpec) -> dict[str, Any]:
    """Arguments of the one call that computes them all, rows in the order of the calls.

    Args:
        calls: of equal signatures.
        entry: of the denoiser.
    """
    if len(calls) == 1:
        return calls[0].arguments
    names = calls[0].arguments
    return {name: _join([call.arguments[name] for call in calls], calls[0].rows, name, entry) for name in names}


def split_output(answer: DenoiserOutput, calls: Sequence[DenoiserCall], entry: DenoiserSpec) -> list[DenoiserOutput]:
    """Each call's own rows of the answer to all of them."""
    if len(calls) == 1:
        return [answer]
    total, parts, start = sum(call.rows for call in calls), [], 0
    for call in calls:
        rows = (start, start + call.rows, total)
        output = _cut(answer.output, rows, listed=entry.sample in entry.listed)
        seen = answer.seen
        if seen is not None:
            seen = RawFeatures(_cut(seen.first, rows), _cut(seen.last, rows), _cut(seen.temb, rows))
        parts.append(DenoiserOutput(output, seen))
        start += call.rows
    return parts


def _per_row(value: Any, rows: int) -> Any:
    """UNets are given one time per image even where guidance doubles the rows, and tile it themselves."""
    if isinstance(value, PerSampleTimesteps):
        return value.expand(rows).as_subclass(Tensor)
    return value


def _has_rows(value: Tensor, rows: int, name: str, entry: DenoiserSpec) -> bool:
    return name not in entry.unbatched and value.ndim > 0 and len(value) == rows


def _is_tensor_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Tensor) for item in value)


def _join(values: list[Any], rows: int, name: str, entry: DenoiserSpec) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values) if _has_rows(first, rows, name, entry) else first
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values], rows, name, entry) for key in first}
    if name in entry.listed and isinstance(first, list):
        return [item for value in values for item in value]
    if isinstance(first, list | tuple):
        return type(first)(_join(list(items), rows, name, entry) for items in zip(*values, strict=True))
    return first


def _cut(value: Any, rows: tuple[int, int, int], listed: bool = False) -> Any:
    start, stop, total = rows
    if listed:
        return map_leaves(value, list, lambda items: items[start:stop])

    def cut(tensor: Tensor) -> Tensor:
        # Z-Image embeds the tokens of all rows in one list: as many for each, because the calls are alike.
        if tensor.ndim == 0 or len(tensor) % total:
            return tensor
        each = len(tensor) // total
        return tensor[start * each : stop * each]

    return map_leaves(value, Tensor, cut)
