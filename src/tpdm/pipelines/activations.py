"""What networks allocate while they run, counted on shapes alone: no weight, no device, no time.

A network on torch's meta device is called with the shapes of a real call, and every tensor is counted from the
operation that makes it until nothing refers to it any more, as PyTorch's allocator would. Attention is taken as the
fused kernels do it, which keep their output and no matrix. What kernels use inside themselves (workspaces of
convolutions and matrix products) and what the allocator loses between blocks are not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Bytes of the tensors that were made while it lasts: alive now, and at most.

    Attributes:
        alive, most: in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts the storages that it made."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._seen:
            return
        self._seen.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


class _FusedAttention(TorchFunctionMode):
    """On the meta device attention would be counted as if its matrix were written down."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            names = ("query", "key", "value")
            given = {**dict(zip(names[: len(args)], args[: len(names)], strict=True)), **(kwargs or {})}
            query, value = given["query"], given["value"]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Peak]:
    """Counts what is made on the meta device while it lasts."""
    with torch.device("meta"), _FusedAttention(), Peak() as peak:
        yield peak


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes that ``run`` has alive at most, what it returns included; it works on meta tensors."""
    with counting() as peak:
        run()
    return peak.most
