"""Copies of a pipeline that share its parts, for calls at the same time."""

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
    """The same parts in a pipeline of its own: what a call notes down on it is seen by no other call.

    Args:
        pipe: left as it is. Copies of a copy are made in no time, for it knows its device.
    """
    mine = copy.copy(pipe)
    cls: Any = type(pipe)
    if "_on_device" not in vars(mine):
        mine.__class__ = _on_one_device(cls)
        vars(mine)["_on_device"] = pipe.device
        mine.set_progress_bar_config(disable=True)
    return mine


@cache
def _on_one_device(cls: Any) -> Any:
    """The pipeline class, which knows its device.

    diffusers looks for hooks of offloading in every module of every part, six times in a call: 4 ms for tinyworld, in
    which no other run can do anything. Offloaded pipelines are refused before.
    """
    known = property(lambda self: vars(self)["_on_device"])
    return type(cls.__name__, (cls,), {"_execution_device": known, "device": known, "__module__": cls.__module__})


Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class RawFeatures:
    """What the tapped modules of a denoiser saw during one call, as they gave it (see ``DenoiserSpec``)."""

    first: Any
    last: Any
    temb: Any


@dataclass(frozen=True)
class DenoiserOutput:
    """What a denoiser call came to: the output in the form that the caller asked for, and what the taps saw."""

    output: Any
    seen: RawFeatures | None


def make_denoiser_proxy(denoiser: nn.Module, compute: Callable[[dict[str, Any]], DenoiserOutput]) -> nn.Module:
    """A denoiser of the same class, with its own hooks, whose calls are answered by ``compute``.

    Args:
        denoiser: of a class in ``backbones.DENOISERS``; left as it is.
        compute: (arguments of the call by name) -> its answer.
    """
    entry = find_entry(denoiser)
    made, signature = shallow_clone(denoiser), forward_signature(denoiser)
    first, last, temb = (_relay(made, path) for path in (entry.first, entry.last, entry.temb))

    @functools.wraps(denoiser.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        answer = compute(signature.bind(*args, **kwargs).arguments)
        if answer.seen is not None:
            first(answer.seen.first)
            last(answer.seen.last)
            temb(answer.seen.temb)
        return answer.output

    vars(made).update(forward=forward, cache_context=_no_cache)
    vars(forward).update(__signature__=signature)  # looked up in every step by those who bind arguments
    return made


def set_denoiser(pipe: Any, denoiser: nn.Module, stand_in: nn.Module) -> None:
    """Puts a stand-in where a pipeline has its denoiser."""
    name = next(name for name, part in pipe.components.items() if part is denoiser)
    setattr(pipe, name, stand_in)


class SharedFeatureHooks:
    """Listens to the tapped modules of the shared denoiser while its ``with`` block lasts."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser, self._entry = denoiser, find_entry(denoiser)
        self._found: dict[str, Any] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> SharedFeatureHooks:
        found, entry = self._found, self._entry
        first, last, temb = (self._denoiser.get_submodule(path) for path in (entry.first, entry.last, entry.temb))
        self._handles = [
            first.register_forward_hook(lambda _m, _a, out: found.update(first=out)),
            last.register_forward_pre_hook(lambda _m, args: found.update(last=args[0])),
            temb.register_forward_hook(lambda _m, _a, out: found.update(temb=out)),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._found.clear()

    def take(self) -> RawFeatures | None:
        """What was seen since the last time; None unless all three modules ran."""
        found = dict(self._found)
        self._found.clear()
        return RawFeatures(**found) if len(found) == 3 else None


def shallow_clone(module: Module) -> Module:
    """A shallow copy without the hooks: the same parameters, buffers and submodules in dictionaries of its own."""
    made = type(module).__new__(type(module))
    nn.Module.__init__(made)
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            vars(made)[name] = type(value)(value)
        elif name == "training" or name not in vars(made):
            vars(made)[name] = value
    return made


def _relay(root: nn.Module, path: str) -> nn.Module:
    """Replaces the module at ``path`` below a twin by one that returns what it is given."""
    *parents, leaf = path.split(".")
    here = root
    for name in parents:
        below = shallow_clone(here.get_submodule(name))
        here.add_module(name, below)
        here = below
    relay = shallow_clone(here.get_submodule(leaf))
    vars(relay).update(forward=_same)
    here.add_module(leaf, relay)
    return relay


def _same(value: Tensor) -> Tensor:
    return value


def _no_cache(*_: object, **__: object) -> AbstractContextManager[None]:
    # Pipelines tell cond from uncond for caches between steps, which merged calls cannot have.
    return nullcontext()
