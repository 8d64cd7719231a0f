"""A denoiser compiled whole, with the places where a policy looks inside the graph.

What is compiled in one call keeps the hooks of that call. So the hooks inside the denoiser are set once, before it is
compiled, and stay; those around it are set for each call as ever, and run outside the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tpdm.core.errors import BackboneError
from tpdm.core.types import Features
from tpdm.pipelines.compatibility import check_pipe
from tpdm.pipelines.registry import bind_arguments, find_denoiser, find_entry
from tpdm.pipelines.time_mapping import PerSampleTimesteps


class CompiledCapture:
    """What the hooks saw in the newest call.

    Attributes:
        first, last, temb: as ``DenoiserSpec`` names them, and as the modules gave them.
    """

    def __init__(self) -> None:
        self.first: Any = None
        self.last: Any = None
        self.temb: Any = None


_HELD: WeakKeyDictionary[nn.Module, CompiledCapture] = WeakKeyDictionary()


def get_compiled_capture(denoiser: nn.Module) -> CompiledCapture | None:
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
    entry, held = find_entry(denoiser), CompiledCapture()

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
            if isinstance(value, PerSampleTimesteps):
                bound.arguments[name] = value.expand(rows)
        return bound.args, bound.kwargs

    denoiser.register_forward_pre_hook(plain_times, with_kwargs=True)
    denoiser.get_submodule(entry.first).register_forward_hook(keep_first)
    denoiser.get_submodule(entry.last).register_forward_pre_hook(keep_last)
    denoiser.get_submodule(entry.temb).register_forward_hook(keep_temb)
    denoiser.forward = torch.compile(denoiser.forward, backend=backend, mode=mode, dynamic=dynamic, fullgraph=fullgraph)
    _HELD[denoiser] = held


@dataclass
class _Capture:
    """What the hooks saw during one denoiser call.

    Attributes:
        rows: of the call.
        grid: (H, W) of its image tokens.
        last_start_B: where they start in ``last``; None is 0.
        first, last, temb: as the modules gave them.
    """

    rows: int
    grid: tuple[int, int]
    last_start_B: Tensor | None
    first: Tensor | None = None
    last: Tensor | None = None
    temb: Tensor | None = None


class FeatureHooks:
    """Sets hooks while its ``with`` block lasts, and hands out what the step's denoiser calls computed.

    Args:
        denoiser: the network, of a class in ``backbones.DENOISERS``.
        guidance: w, for features u + w (c - u) where the pipeline guides; None reads conditional rows alone.

    Raises:
        BackboneError: the class is unknown.
    """

    def __init__(self, denoiser: nn.Module, guidance: float | None = None) -> None:
        self.denoiser, self.entry, self.guidance = denoiser, find_entry(denoiser), guidance
        self._calls: list[_Capture] = []
        self._handles: list[Any] = []

    def __enter__(self) -> FeatureHooks:
        entry, held = self.entry, get_compiled_capture(self.denoiser)
        # Found before the first hook is set: a path that leads nowhere leaves none behind.
        first, last, temb = (self.denoiser.get_submodule(path) for path in (entry.first, entry.last, entry.temb))
        self._handles = [self.denoiser.register_forward_pre_hook(self._begin, with_kwargs=True)]
        if held is not None:
            take = self.denoiser.register_forward_hook(lambda *_: self._keep(held.first, held.last, held.temb))
            self._handles.append(take)
            return self
        self._handles += [
            first.register_forward_hook(lambda _m, _a, out: self._keep(first=out)),
            last.register_forward_pre_hook(lambda _m, args: self._keep(last=args[0])),
            temb.register_forward_hook(lambda _m, _a, out: self._keep(temb=out)),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._calls = [], []

    def features(self, images: int) -> Features:
        """Features of the step just computed, one row per image; forgets them.

        Args:
            images: active images, B; under one-call guidance the captures hold 2B rows.

        Returns:
            Maps (B, D, H, W) and temb (B, E), in the denoiser's dtype.

        Raises:
            BackboneError: the hooks saw no call, or an unexpected number of rows or tokens.
        """
        calls, self._calls = self._calls or [_Capture(0, (0, 0), None)], []
        # With two calls per step the conditional one comes first, with one call it is the only one.
        needed = calls if self.guidance is not None else calls[:1]
        kinds = zip(*(self._maps(call) for call in needed), strict=True)
        first, last, temb = (self._rows(tensors, images) for tensors in kinds)
        return Features(first_BDHW=first, last_BDHW=last, temb_BE=temb)

    def _maps(self, call: _Capture) -> tuple[Tensor, Tensor, Tensor]:
        """First and last map and the time embedding of all rows of a call."""
        if call.first is None or call.last is None or call.temb is None:
            raise BackboneError(
                f"got no features from {type(self.denoiser).__name__}, expected its hooks to run in every "
                "step: if a part of it is compiled that holds them, compile its blocks alone."
            )
        first = _as_map(call.first, call.rows, call.grid, None)
        return first, _as_map(call.last, call.rows, call.grid, call.last_start_B), call.temb

    def _rows(self, calls: tuple[Tensor, ...], images: int) -> Tensor:
        """One row per image: the conditional one, or both combined as the prediction is."""
        conditional = self._half(calls[0], images, conditional=True)
        if self.guidance is None:
            return conditional
        if len(calls) > 1:
            unconditional = calls[1]
        elif calls[0].shape[0] == 2 * images:
            unconditional = self._half(calls[0], images, conditional=False)
        else:
            return conditional  # the pipeline runs without guidance
        return unconditional + self.guidance * (conditional - unconditional)

    def _half(self, rows: Tensor, images: int, conditional: bool) -> Tensor:
        if rows.shape[0] == images:
            return rows
        if rows.shape[0] != 2 * images or self.entry.guidance == "two_calls":
            raise BackboneError(
                f"got {rows.shape[0]} rows in a call of {type(self.denoiser).__name__} for {images} active "
                f"images, expected {images}, or twice that under guidance: correct the DenoiserSpec's guidance."
            )
        second = conditional == (self.entry.guidance == "uncond_cond")
        return rows[images:] if second else rows[:images]

    def _begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments, entry = bind_arguments(denoiser, args, kwargs).arguments, self.entry
        start = None if entry.last_start is None else entry.last_start(arguments, denoiser)
        self._calls.append(_Capture(len(arguments[entry.sample]), entry.grid(arguments, denoiser), start))

    def _keep(self, first: Any = None, last: Any = None, temb: Any = None) -> None:
        call = self._calls[-1]
        if first is not None:
            call.first = first
        if last is not None:
            call.last = last
        if temb is not None:
            call.temb = temb if self.entry.temb_index is None else temb[self.entry.temb_index]


def _as_map(value: Tensor, rows: int, grid: tuple[int, int], start_B: Tensor | None) -> Tensor:
    """What a module saw as a map (B, D, H, W); a view, unless tokens start at different places.

    Args:
        value: a map (B, D, ..., W), raster tokens (B, N, D), or those of all rows in one list (B N, D).
        rows: B.
        grid: (H, W).
        start_B: position of each row's first image token, int64; None is 0.
    """
    (height, width), tokens_BND = grid, value
    if value.ndim > 3:
        return value.flatten(2).unflatten(2, grid)
    if value.ndim == 2:
        tokens_BND = value.unflatten(0, (rows, -1))
    start = 0 if start_B is None else int(start_B.max())
    if tokens_BND.shape[1] < start + height * width:
        raise BackboneError(
            f"got {tokens_BND.shape[1]} tokens for a grid of {height} x {width} from token {start} on, expected at "
            f"least {start + height * width}: the grid rule of this denoiser's DenoiserSpec does not fit."
        )
    if start_B is None:
        tokens_BND = tokens_BND[:, : height * width]
    else:
        places_BN = start_B[:, None] + torch.arange(height * width, dtype=torch.int64, device=start_B.device)
        tokens_BND = tokens_BND.gather(1, places_BN[:, :, None].expand(-1, -1, tokens_BND.shape[2]))
    return tokens_BND.transpose(1, 2).unflatten(2, grid)
