"""A device like Apple's on a machine that has none: tensors that say "mps", keep float32 at most and mix with no other.

The numbers are computed on the CPU. What a real MPS device refuses is refused here: float64, an operation between its
tensors and those of the CPU (but for single numbers), and averages over windows of different sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MPS, CPU = torch.device("mps:0"), torch.device("cpu")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, Tensor.copy_)
IN_C = {
    *(torch.nn.functional.scaled_dot_product_attention, Tensor.__setitem__, Tensor.copy_),
    *(Tensor.new_tensor, Tensor.nonzero),
}


class Pretended(Tensor):
    """A tensor on the pretended device.

    Attributes:
        inner: the numbers, on the CPU.
    """

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as MPS does not support it (pretended).")
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=MPS
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inner!r})"

    # What PyTorch does in C++ for devices that are there, and refuses to subclasses.
    def __getitem__(self, index: Any) -> Any:
        return _take(self, index if isinstance(index, tuple) else (index,))

    def as_subclass(self, cls: Any) -> Any:
        return _both(cls)(self.inner)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __float__(self) -> float:
        return float(self.inner)

    def __int__(self) -> int:
        return int(self.inner)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes on the CPU what the device would compute."""
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = any(isinstance(x, Pretended) for x in given)
    asked = kwargs.get("device")
    if asked is not None:
        here = torch.device(asked).type == "mps"
    elif func in COPIES[1:]:
        here = isinstance(args[0], Pretended)
    if here and func not in COPIES:
        strangers = [x for x in given if not isinstance(x, Pretended) and x.ndim]
        if strangers:
            raise RuntimeError(f"Expected all tensors to be on the same device in {func}, got mps and cpu (pretended).")
    pools = here and func is torch.ops.aten._adaptive_avg_pool2d.default
    if pools and any(side % new for side, new in zip(args[0].shape[-2:], args[1], strict=True)):
        raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes (pretended).")
    plain = {name: CPU if name == "device" and value is not None else value for name, value in kwargs.items()}
    args, plain = tree_map(lambda x: x.inner if isinstance(x, Pretended) else x, (args, plain))
    found = func(*args, **plain)
    name = getattr(func, "__name__", "").split(".")[0]
    if name.endswith("_") and not name.startswith("__"):
        return given[0]  # changed in place
    return tree_map(lambda x: Pretended(x) if here and isinstance(x, Tensor) else x, found)


class _Factories(TorchDispatchMode):
    """Tensors that are made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "mps":
            return _compute(func, args, kwargs)
        return func(*args, **kwargs)


def _take(x: Tensor, index: tuple[Any, ...]) -> Tensor:
    """``x[index]`` in plain operations."""
    spare = x.ndim - sum(i is not None and i is not Ellipsis for i in index)
    dim, rows = 0, {}
    for i in index:
        if i is Ellipsis:
            dim += spare
        elif i is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(i, slice):
            x, dim = torch.ops.aten.slice.Tensor(x, dim, i.start, i.stop, i.step or 1), dim + 1
        elif isinstance(i, int):
            x = x.select(dim, i)
        else:
            rows[dim] = i if isinstance(i, Tensor) else torch.tensor(i, dtype=torch.int64, device=x.device)
            dim += 1
    return torch.ops.aten.index.Tensor(x, [rows.get(d) for d in range(max(rows) + 1)]) if rows else x


@cache
def _both(cls: Any) -> Any:
    """A tensor of the class ``cls`` on the pretended device; operations on it stay of that class."""
    if cls is Tensor:
        return Pretended

    def keep(kind: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        return tree_map(lambda x: kind(x.inner) if type(x) is Pretended else x, found)

    return type(f"Pretended{cls.__name__}", (cls, Pretended), {"__torch_function__": classmethod(keep)})


class _Python(TorchFunctionMode):
    """What asks in C++ for a device that is there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or CPU).type == "mps"
        if made or (func in IN_C and any(isinstance(x, Pretended) for x in (*args, *kwargs.values()))):
            return _compute(func, args, kwargs)
        if func is Tensor.contiguous and isinstance(args[0], Pretended):
            return args[0].clone(memory_format=torch.contiguous_format)
        return func(*args, **kwargs)


@contextmanager
def pretended_mps() -> Iterator[torch.device]:
    """The device, while it lasts, without gradients: autograd asks in C++ for streams of a device that is there."""
    replaced = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # module.to(): new parameters, not new data
    try:
        with torch.no_grad(), _Python(), _Factories():
            yield MPS
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(replaced)
