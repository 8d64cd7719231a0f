"""Finished images leave the denoiser call: their rows are cut out before it and zero after it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tpdm.core.errors import BackboneError
from tpdm.pipelines.registry import bind_arguments, find_entry
from tpdm.pipelines.time_mapping import PerSampleTimesteps


class ActiveRows:
    """While its ``with`` block lasts, the denoiser computes rows of active images only.

    A call holds one row per image, or two under one-call guidance (all unconditional rows, then all
    conditional ones, or the reverse). Every tensor argument with that many rows, also inside lists and
    dictionaries, is cut, and so are the lists of the entry and times per image. As long as all images are active,
    calls pass through untouched.

    Args:
        denoiser: the network, of a class in ``backbones.DENOISERS``.
        read_active: () -> (number of images B, positions of the active ones, ascending and not empty).
        guided: whether the pipeline guides; where it does not, a call has one row per image.

    Attributes:
        rows_per_call: rows computed by each denoiser call, in order.
        failed_cut: whether the newest call did not come back, and some of its rows were cut out.
    """

    def __init__(
        self, denoiser: nn.Module, read_active: Callable[[], tuple[int, list[int]]], guided: bool = True
    ) -> None:
        self.denoiser, self.entry, self._read_active = denoiser, find_entry(denoiser), read_active
        self._most = 2 if guided else 1
        self.rows_per_call: list[int] = []
        self._handles: list[Any] = []
        self._cut: tuple[list[int], int] | None = None
        self._thread = threading.get_ident()
        self.failed_cut = False

    def __enter__(self) -> ActiveRows:
        # prepend: the taps' own pre-hook, set on the same module, then sees the call as it is computed.
        self._handles = [
            self.denoiser.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            self.denoiser.register_forward_hook(self._after),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._cut = [], None

    def _before(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        check_thread(self._thread)
        bound = bind_arguments(denoiser, args, kwargs)
        full, (images, active) = len(bound.arguments[self.entry.sample]), self._read_active()
        if full not in (images, self._most * images):
            expected = images if self._most == 1 else f"{images} or {2 * images}"
            raise BackboneError(
                f"got {full} rows in a call of {type(denoiser).__name__} for {images} images, expected {expected}: "
                "this pipeline batches its calls in a way that cannot be driven."
            )
        copies = full // images
        self.rows_per_call.append(copies * len(active))
        self._cut = None
        if len(active) == images:
            return None
        rows = [c * images + b for c in range(copies) for b in active]
        self._cut, self.failed_cut = (rows, full), True
        for name, value in bound.arguments.items():
            if name in self.entry.listed:
                # Qwen's pipeline lists shapes per prompt, which may be fewer.
                cut = isinstance(value, list) and len(value) == full
                bound.arguments[name] = [value[row] for row in rows] if cut else value
            elif name not in self.entry.unbatched:
                bound.arguments[name] = map_leaves(value, Tensor, lambda t: _take(t, rows, full, active, images))
        return bound.args, bound.kwargs

    def _after(self, denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._cut is None:
            return None
        self.failed_cut = False
        rows, full = self._cut
        if self.entry.sample in self.entry.listed:
            return map_leaves(output, list, lambda items: _put_back_list(items, rows, full))
        return map_leaves(output, Tensor, lambda t: _put_back(t, rows, full, denoiser))


def dependent_calls(denoiser: nn.Module, found: str) -> BackboneError:
    """The error of a network that goes wrong once images have left its calls.

    Args:
        denoiser: the network.
        found: what went wrong, in words.
    """
    return BackboneError(
        f"got {found} from {type(denoiser).__name__} once images had left the call, expected a network whose calls do "
        "not depend on each other: switch off what keeps things between calls, such as a cache that counts them."
    )


def check_thread(driver: int) -> None:
    """Refuses a call from another thread than the one that drives the pipeline.

    Args:
        driver: identifier of the thread that does.

    Raises:
        BackboneError: this is another one.
    """
    if threading.get_ident() != driver:
        raise BackboneError(
            "got a call of a pipeline while another thread makes images with it, expected one after the other: call "
            "what tpdm.attach returned, which waits, or give each thread a copy.deepcopy of the pipeline."
        )


def _take(tensor: Tensor, rows: list[int], full: int, active: list[int], images: int) -> Tensor:
    if isinstance(tensor, PerSampleTimesteps) and len(tensor) == images:
        # UNets get one time per image even when guidance doubles the rows, and tile it themselves.
        return tensor[_index(active, tensor)]
    if tensor.ndim == 0 or tensor.shape[0] != full:
        return tensor
    return tensor.index_select(0, _index(rows, tensor))


def _put_back(tensor: Tensor, rows: list[int], full: int, denoiser: nn.Module) -> Tensor:
    """Scatters computed rows among zeros, (rows, ...) -> (full, ...)."""
    if tensor.ndim == 0:
        return tensor
    if tensor.shape[0] != len(rows):
        raise dependent_calls(denoiser, f"{tensor.shape[0]} rows for {len(rows)}")
    return tensor.new_zeros(full, *tensor.shape[1:]).index_copy(0, _index(rows, tensor), tensor)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=like.device)


def _put_back_list(items: list[Tensor], rows: list[int], full: int) -> list[Tensor]:
    """The computed rows' tensors among zeros; the list then has ``full`` elements."""
    whole = [torch.zeros_like(items[0]) for _ in range(full)]
    for row, item in zip(rows, items, strict=True):
        whole[row] = item
    return whole


def map_leaves(value: Any, leaf: type, change: Callable[[Any], Any]) -> Any:
    """Applies ``change`` to the parts of type ``leaf`` of nested tuples, lists and mappings; the containers are new."""
    if isinstance(value, leaf):
        return change(value)
    if isinstance(value, Mapping):
        # Covers diffusers' output classes too: they are mappings built from keywords.
        items = {k: map_leaves(v, leaf, change) for k, v in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, list | tuple):
        return type(value)(map_leaves(v, leaf, change) for v in value)
    return value
