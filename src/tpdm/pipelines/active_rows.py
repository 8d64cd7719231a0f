"""``ActiveRows``: denoiser calls without the rows of finished images."""

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
    """Context manager in which the denoiser computes rows of active images only.

    A call has one row per image, or two with one-call guidance (all unconditional rows, then all conditional ones, or
    the reverse). Rows of finished images are removed from every tensor argument with that number of rows, including
    tensors inside lists and dictionaries, from the lists named in the entry, and from times per image. The output has
    zeros in their place. While all images are active, calls do not change.

    Args:
        denoiser: Network of a class in ``registry.DENOISERS``.
        read_active: () -> (number of images B, positions of the active ones, ascending and not empty).
        guided: Whether the pipeline guides. Without guidance a call has one row per image.

    Attributes:
        rows_per_call: Number of rows computed by each denoiser call, in order.
        failed_cut: Whether the last call raised an error after some of its rows were removed.
    """

    def __init__(
        self, denoiser: nn.Module, read_active: Callable[[], tuple[int, list[int]]], guided: bool = True
    ) -> None:
        self.denoiser, self.entry, self._read_active = denoiser, find_entry(denoiser), read_active
        self._max_copies = 2 if guided else 1
        self.rows_per_call: list[int] = []
        self._handles: list[Any] = []
        self._cut: tuple[list[int], int] | None = None
        self._thread = threading.get_ident()
        self.failed_cut = False

    def __enter__(self) -> ActiveRows:
        # prepend: the pre-hook of FeatureHooks on the same module then sees the call as it is computed.
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
        if full not in (images, self._max_copies * images):
            expected = images if self._max_copies == 1 else f"{images} or {2 * images}"
            raise BackboneError(
                f"{type(denoiser).__name__} was called with {full} rows for {images} images. It must be {expected}. "
                "A pipeline that batches its calls in another way cannot be driven."
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
                # Qwen's pipeline lists shapes per prompt. There may be fewer of them.
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


def dependent_calls(denoiser: nn.Module, problem: str) -> BackboneError:
    """Returns the error for a network that fails after images have left its calls.

    Args:
        denoiser: The network.
        problem: What it returned or raised.
    """
    return BackboneError(
        f"{type(denoiser).__name__} returned {problem} after finished images had left its call. Its calls must not "
        "depend on each other. Switch off whatever stores state between calls, such as a cache that counts them."
    )


def check_thread(driver: int) -> None:
    """Refuses a call from any thread except the one that drives the pipeline.

    Args:
        driver: Identifier of the driving thread.

    Raises:
        BackboneError: The current thread is another one.
    """
    if threading.get_ident() != driver:
        raise BackboneError(
            "The pipeline was called while another thread generates images with it. Calls must follow each other. Call "
            "the object that tpdm.attach returned, which waits, or give each thread a copy.deepcopy of the pipeline."
        )


def _take(tensor: Tensor, rows: list[int], full: int, active: list[int], images: int) -> Tensor:
    if isinstance(tensor, PerSampleTimesteps) and len(tensor) == images:
        # UNets take one time per image even if guidance doubles the rows, and repeat it themselves.
        return tensor[_index(active, tensor)]
    if tensor.ndim == 0 or tensor.shape[0] != full:
        return tensor
    return tensor.index_select(0, _index(rows, tensor))


def _put_back(tensor: Tensor, rows: list[int], full: int, denoiser: nn.Module) -> Tensor:
    """Scatters computed rows among zeros, (rows, ...) -> (full, ...)."""
    if tensor.ndim == 0:
        return tensor
    if tensor.shape[0] != len(rows):
        raise dependent_calls(denoiser, f"{tensor.shape[0]} rows instead of {len(rows)}")
    return tensor.new_zeros(full, *tensor.shape[1:]).index_copy(0, _index(rows, tensor), tensor)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=like.device)


def _put_back_list(items: list[Tensor], rows: list[int], full: int) -> list[Tensor]:
    """Returns a list of ``full`` tensors: the computed rows, and zeros elsewhere."""
    padded = [torch.zeros_like(items[0]) for _ in range(full)]
    for row, item in zip(rows, items, strict=True):
        padded[row] = item
    return padded


def map_leaves(value: Any, leaf: type, change: Callable[[Any], Any]) -> Any:
    """Applies ``change`` to every value of type ``leaf`` in nested tuples, lists and mappings. The containers are new.

    Example:
        >>> map_leaves({"a": [1, 2.0]}, int, lambda x: x + 1)
        {'a': [2, 2.0]}
    """
    if isinstance(value, leaf):
        return change(value)
    if isinstance(value, Mapping):
        # diffusers' output classes are mappings built from keywords.
        items = {k: map_leaves(v, leaf, change) for k, v in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, list | tuple):
        return type(value)(map_leaves(v, leaf, change) for v in value)
    return value
