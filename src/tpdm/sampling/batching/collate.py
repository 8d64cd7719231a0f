"""Collates denoiser calls of several runs into one batch, and splits its output into their rows."""

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
    """One denoiser call.

    Attributes:
        rows: Number of rows B, the length of the latents.
        arguments: Arguments by name, with one time per row.
        signature: Calls with equal signatures can be computed as one batch. It contains everything but the rows.
    """

    rows: int
    arguments: dict[str, Any]
    signature: Hashable


class CallSigner:
    """Computes the signatures of the calls of one run.

    Tensors without rows are compared by a digest, which is cached: they are the same objects in all calls of a run.

    Args:
        entry: Registry entry of the denoiser.
    """

    def __init__(self, entry: DenoiserSpec) -> None:
        self._entry = entry
        self._digests: dict[tuple[str, ...], tuple[Tensor, str]] = {}

    def sign(self, arguments: Mapping[str, Any]) -> DenoiserCall:
        """Returns the call with its signature.

        Args:
            arguments: Arguments of the call by name.
        """
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
        cached = self._digests.get(path)
        if cached is None or cached[0] is not value:
            plain = value.detach().cpu().contiguous()
            digest = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes() if plain.ndim else repr(plain).encode())
            cached = self._digests[path] = (value, digest.hexdigest())
        return cached[1]


def collate_calls(calls: Sequence[DenoiserCall], entry: DenoiserSpec) -> dict[str, Any]:
    """Returns the arguments of one call that computes them all, with the rows in the order of the calls.

    Args:
        calls: Calls with equal signatures, at least one.
        entry: Registry entry of the denoiser.
    """
    if len(calls) == 1:
        return calls[0].arguments
    names = calls[0].arguments
    return {name: _join([call.arguments[name] for call in calls], calls[0].rows, name, entry) for name in names}


def split_output(batch: DenoiserOutput, calls: Sequence[DenoiserCall], entry: DenoiserSpec) -> list[DenoiserOutput]:
    """Returns the rows of each call. The inverse of ``collate_calls``.

    Args:
        batch: Output for all calls.
        calls: Calls in the order of their rows.
        entry: Registry entry of the denoiser.
    """
    if len(calls) == 1:
        return [batch]
    total, parts, start = sum(call.rows for call in calls), [], 0
    for call in calls:
        rows = (start, start + call.rows, total)
        output = _cut(batch.output, rows, listed=entry.sample in entry.listed)
        raw = batch.features
        if raw is not None:
            raw = RawFeatures(_cut(raw.first, rows), _cut(raw.last, rows), _cut(raw.temb, rows))
        parts.append(DenoiserOutput(output, raw))
        start += call.rows
    return parts


def _per_row(value: Any, rows: int) -> Any:
    """UNets get one time per image and repeat it themselves if guidance doubles the rows. This repeats it before."""
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
        # Z-Image embeds the tokens of all rows in one list. Calls with equal signatures have the same number of tokens.
        if tensor.ndim == 0 or len(tensor) % total:
            return tensor
        each = len(tensor) // total
        return tensor[start * each : stop * each]

    return map_leaves(value, Tensor, cut)
