"""A denoiser compiled whole, with the places where a policy looks inside the graph.

What is compiled in one call keeps the hooks of that call. So the hooks inside the denoiser are set once, before it is
compiled, and stay; those around it are set for each call as ever, and run outside the graph.
"""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tpdm.pipelines.backbones import bind_arguments, find_denoiser, find_entry
from tpdm.pipelines.checks import check_pipe
from tpdm.pipelines.image_times import ImageTimes


class Held:
    """What the hooks saw in the newest call.

    Attributes:
        first, last, temb: as ``TapEntry`` names them, and as the modules gave them.
    """

    def __init__(self) -> None:
        self.first: Any = None
        self.last: Any = None
        self.temb: Any = None


_HELD: WeakKeyDictionary[nn.Module, Held] = WeakKeyDictionary()


def held_by(denoiser: nn.Module) -> Held | None:
    """What a denoiser that was compiled by ``compile_denoiser`` shows; None for any other."""
    return _HELD.get(denoiser)


def compile_denoiser(
    pipe: Any,
    backend: str = "inductor",
    mode: Literal["default", "max-autotune-no-cudagraphs"] | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = True,
) -> None:
    """``torch.compile`` of the whole denoiser of a pipeline, in place, so that policies can still look into it.

    Each number of active images is a shape of its own: with ``dynamic=None`` torch compiles once more, for any number,
    when it sees the second one.

    Args:
        pipe: a pipeline that ``attach`` accepts. Load its LoRA weights before.
        backend, mode, dynamic, fullgraph: as in ``torch.compile``. Modes with CUDA graphs are not offered: they reuse
            the memory that features lie in.

    Raises:
        BackboneError: the pipeline cannot be driven, or its denoiser is compiled already.
    """
    check_pipe(pipe)
    denoiser = find_denoiser(pipe)
    if denoiser in _HELD:
        return
    entry, held = find_entry(denoiser), Held()

    def keep_first(module: nn.Module, args: Any, output: Any) -> None:
        held.first = output

    def keep_last(module: nn.Module, args: Any) -> None:
        held.last = args[0]

    def keep_temb(module: nn.Module, args: Any, output: Any) -> None:
        held.temb = output

    def plain_times(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # One time per row, which UNets would make of them inside the graph, where their class is not known.
        bound = bind_arguments(module, args, kwargs)
        rows = len(bound.arguments[entry.sample])
        for name, value in bound.arguments.items():
            if isinstance(value, ImageTimes):
                bound.arguments[name] = value.expand(rows)
        return bound.args, bound.kwargs

    denoiser.register_forward_pre_hook(plain_times, with_kwargs=True)
    denoiser.get_submodule(entry.first).register_forward_hook(keep_first)
    denoiser.get_submodule(entry.last).register_forward_pre_hook(keep_last)
    denoiser.get_submodule(entry.temb).register_forward_hook(keep_temb)
    denoiser.forward = torch.compile(denoiser.forward, backend=backend, mode=mode, dynamic=dynamic, fullgraph=fullgraph)
    _HELD[denoiser] = held
