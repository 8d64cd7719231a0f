"""Shallow clones of a pipeline and proxies of its denoiser, for calls at the same time."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from torch import Tensor, nn

from tpdm.pipelines.registry import find_entry, forward_signature


def clone_pipeline(pipe: Any) -> Any:
    """Returns a pipeline with the same components, whose attributes a call can set without an effect on other calls.

    Args:
        pipe: Pipeline to clone. It is not changed. Clones of a clone are cheap, because a clone caches its device.
    """
    clone = copy.copy(pipe)
    cls: Any = type(pipe)
    if "_on_device" not in vars(clone):
        clone.__class__ = _on_one_device(cls)
        vars(clone)["_on_device"] = pipe.device
        clone.set_progress_bar_config(disable=True)
    return clone


@cache
def _on_one_device(cls: Any) -> Any:
    """The pipeline class with a constant device.

    diffusers searches every module of every component for hooks of offloading, six times per call. For tinyworld this
    takes 4 ms under the GIL. Offloaded pipelines are refused before.
    """
    device = property(lambda self: vars(self)["_on_device"])
    return type(cls.__name__, (cls,), {"_execution_device": device, "device": device, "__module__": cls.__module__})


Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class RawFeatures:
    """Values that the feature hooks of a denoiser recorded during one call (see ``DenoiserSpec``)."""

    first: Any
    last: Any
    temb: Any


@dataclass(frozen=True)
class DenoiserOutput:
    """Result of a denoiser call.

    Attributes:
        output: Output of the denoiser, in the form that the arguments ask for.
        features: Recorded features. None if a module with a hook did not run.
    """

    output: Any
    features: RawFeatures | None


def make_denoiser_proxy(denoiser: nn.Module, compute: Callable[[dict[str, Any]], DenoiserOutput]) -> nn.Module:
    """Returns a denoiser of the same class with hooks of its own, whose calls go to ``compute``.

    Args:
        denoiser: Network of a class in ``registry.DENOISERS``. It is not changed.
        compute: (arguments of the call by name) -> its result.
    """
    entry = find_entry(denoiser)
    proxy, signature = shallow_clone(denoiser), forward_signature(denoiser)
    first, last, temb = (_passthrough(proxy, path) for path in (entry.first, entry.last, entry.temb))

    @functools.wraps(denoiser.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        result = compute(signature.bind(*args, **kwargs).arguments)
        if result.features is not None:  # calls the hooks of this run
            first(result.features.first)
            last(result.features.last)
            temb(result.features.temb)
        return result.output

    vars(proxy).update(forward=forward, cache_context=_no_cache)
    vars(forward).update(__signature__=signature)  # looked up in every step
    return proxy


def set_denoiser(pipe: Any, denoiser: nn.Module, replacement: nn.Module) -> None:
    """Replaces the denoiser of a pipeline."""
    name = next(name for name, component in pipe.components.items() if component is denoiser)
    setattr(pipe, name, replacement)


class SharedFeatureHooks:
    """Context manager whose hooks record the features of the shared denoiser."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser, self._entry = denoiser, find_entry(denoiser)
        self._recorded: dict[str, Any] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> SharedFeatureHooks:
        recorded, entry = self._recorded, self._entry
        first, last, temb = (self._denoiser.get_submodule(path) for path in (entry.first, entry.last, entry.temb))
        self._handles = [
            first.register_forward_hook(lambda _m, _a, out: recorded.update(first=out)),
            last.register_forward_pre_hook(lambda _m, args: recorded.update(last=args[0])),
            temb.register_forward_hook(lambda _m, _a, out: recorded.update(temb=out)),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._recorded.clear()

    def take(self) -> RawFeatures | None:
        """Returns the features recorded since the last call. None unless all three modules ran."""
        recorded = dict(self._recorded)
        self._recorded.clear()
        return RawFeatures(**recorded) if len(recorded) == 3 else None


def shallow_clone(module: Module) -> Module:
    """Returns a copy without hooks that has the same parameters, buffers and submodules, in dictionaries of its own.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> clone = shallow_clone(linear)
        >>> clone is linear, clone.weight is linear.weight
        (False, True)
    """
    clone = type(module).__new__(type(module))
    nn.Module.__init__(clone)
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            vars(clone)[name] = type(value)(value)
        elif name == "training" or name not in vars(clone):
            vars(clone)[name] = value
    return clone


def _passthrough(root: nn.Module, path: str) -> nn.Module:
    """Replaces the module at ``path`` of a clone by one that returns its input."""
    *parents, leaf = path.split(".")
    parent = root
    for name in parents:
        child = shallow_clone(parent.get_submodule(name))
        parent.add_module(name, child)
        parent = child
    module = shallow_clone(parent.get_submodule(leaf))
    vars(module).update(forward=_identity)
    parent.add_module(leaf, module)
    return module


def _identity(value: Tensor) -> Tensor:
    return value


def _no_cache(*_: object, **__: object) -> AbstractContextManager[None]:
    # Pipelines mark conditional and unconditional calls for caches between steps, which merged calls cannot have.
    return nullcontext()
