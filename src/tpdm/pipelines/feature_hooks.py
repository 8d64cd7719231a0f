"""Hooks that read a denoiser's features, and ``compile_denoiser``, which keeps them inside a compiled graph."""

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
    """Outputs that the hooks captured in the last call.

    Attributes:
        first, last, temb: Values of the modules of the same name in ``DenoiserSpec``.
    """

    def __init__(self) -> None:
        self.first: Any = None
        self.last: Any = None
        self.temb: Any = None


_CAPTURES: WeakKeyDictionary[nn.Module, CompiledCapture] = WeakKeyDictionary()


def get_compiled_capture(denoiser: nn.Module) -> CompiledCapture | None:
    """Returns the capture of a denoiser that ``compile_denoiser`` compiled. None for any other."""
    return _CAPTURES.get(denoiser)


def compile_denoiser(
    pipe: Any,
    backend: str = "inductor",
    mode: Literal["default", "max-autotune-no-cudagraphs"] | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = True,
) -> None:
    """Compiles the whole denoiser of a pipeline in place, so that policies can still read its features.

    A graph keeps the hooks that were set when it was compiled. So the hooks inside the denoiser are set once, before
    compilation. Hooks around the denoiser are set for each call and run outside the graph.

    Each number of active images is another shape. With ``dynamic=None``, torch compiles a second time, for any number,
    at the second shape.

    Args:
        pipe: Pipeline that ``attach`` accepts. Load its LoRA weights first.
        backend, mode, dynamic, fullgraph: Options of ``torch.compile``. Modes with CUDA graphs are not available,
            because they reuse the memory of the features.

    Raises:
        BackboneError: The pipeline cannot be driven, or its denoiser is already compiled.

    Example:
        >>> compile_denoiser(pipe)  # doctest: +SKIP
        >>> fast = tpdm.attach(pipe, "runs/demo/train/best")  # doctest: +SKIP
    """
    check_pipe(pipe)
    denoiser = find_denoiser(pipe)
    if denoiser in _CAPTURES:
        return
    entry, capture = find_entry(denoiser), CompiledCapture()

    def keep_first(module: nn.Module, args: Any, output: Any) -> None:
        capture.first = output

    def keep_last(module: nn.Module, args: Any) -> None:
        capture.last = args[0]

    def keep_temb(module: nn.Module, args: Any, output: Any) -> None:
        capture.temb = output

    def plain_times(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # UNets would expand times inside the graph, where their tensor class is not known.
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
    _CAPTURES[denoiser] = capture


@dataclass
class _Capture:
    """Values captured during one denoiser call.

    Attributes:
        rows: Number of rows of the call.
        grid: (H, W) of its image tokens.
        last_start_B: Position of each row's first image token in ``last``. None is 0.
        first, last, temb: Values of the modules.
    """

    rows: int
    grid: tuple[int, int]
    last_start_B: Tensor | None
    first: Tensor | None = None
    last: Tensor | None = None
    temb: Tensor | None = None


class FeatureHooks:
    """Context manager that captures the features of each step's denoiser calls.

    Args:
        denoiser: Network of a class in ``registry.DENOISERS``.
        guidance: Scale w of features u + w (c - u), if the pipeline guides. None reads conditional rows only.

    Raises:
        BackboneError: The class is unknown.
    """

    def __init__(self, denoiser: nn.Module, guidance: float | None = None) -> None:
        self.denoiser, self.entry, self.guidance = denoiser, find_entry(denoiser), guidance
        self._calls: list[_Capture] = []
        self._handles: list[Any] = []

    def __enter__(self) -> FeatureHooks:
        entry, compiled = self.entry, get_compiled_capture(self.denoiser)
        # All modules are looked up before the first hook is set, so that a wrong path leaves no hooks.
        first, last, temb = (self.denoiser.get_submodule(path) for path in (entry.first, entry.last, entry.temb))
        self._handles = [self.denoiser.register_forward_pre_hook(self._begin, with_kwargs=True)]
        if compiled is not None:
            copy = self.denoiser.register_forward_hook(
                lambda *_: self._keep(compiled.first, compiled.last, compiled.temb)
            )
            self._handles.append(copy)
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
        """Returns the features of the last step, one row per image, and clears them.

        Args:
            images: Number of active images, B. With one-call guidance the captures have 2B rows.

        Returns:
            Maps (B, D, H, W) and temb (B, E), in the denoiser's dtype.

        Raises:
            BackboneError: The hooks captured no call, or a wrong number of rows or tokens.
        """
        calls, self._calls = self._calls or [_Capture(0, (0, 0), None)], []
        # With two calls per step the conditional one is first.
        needed = calls if self.guidance is not None else calls[:1]
        kinds = zip(*(self._maps(call) for call in needed), strict=True)
        first, last, temb = (self._rows(tensors, images) for tensors in kinds)
        return Features(first_BDHW=first, last_BDHW=last, temb_BE=temb)

    def _maps(self, call: _Capture) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the first map, the last map and the time embedding of all rows of a call."""
        if call.first is None or call.last is None or call.temb is None:
            raise BackboneError(
                f"{type(self.denoiser).__name__} gave no features. Its hooks must run in every step. If a part of it "
                "is compiled, compile only its blocks."
            )
        first = _as_map(call.first, call.rows, call.grid, None)
        return first, _as_map(call.last, call.rows, call.grid, call.last_start_B), call.temb

    def _rows(self, calls: tuple[Tensor, ...], images: int) -> Tensor:
        """Returns one row per image: the conditional one, or both combined like the prediction."""
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
                f"{type(self.denoiser).__name__} was called with {rows.shape[0]} rows for {images} active images. It "
                f"must be {images}, or twice that with guidance. Correct guidance of its DenoiserSpec."
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
    """Returns a module's value as a map (B, D, H, W). It is a view if all rows' tokens start at the same position.

    Args:
        value: A map (B, D, ..., W), raster tokens (B, N, D), or the tokens of all rows in one list (B N, D).
        rows: Number of rows B.
        grid: (H, W).
        start_B: Position of each row's first image token, int64. None is 0.
    """
    (height, width), tokens_BND = grid, value
    if value.ndim > 3:
        return value.flatten(2).unflatten(2, grid)
    if value.ndim == 2:
        tokens_BND = value.unflatten(0, (rows, -1))
    start = 0 if start_B is None else int(start_B.max())
    if tokens_BND.shape[1] < start + height * width:
        raise BackboneError(
            f"The grid is {height} x {width} from token {start} on, but there are {tokens_BND.shape[1]} tokens. There "
            f"must be at least {start + height * width}. Correct grid of this denoiser's DenoiserSpec."
        )
    if start_B is None:
        tokens_BND = tokens_BND[:, : height * width]
    else:
        places_BN = start_B[:, None] + torch.arange(height * width, dtype=torch.int64, device=start_B.device)
        tokens_BND = tokens_BND.gather(1, places_BN[:, :, None].expand(-1, -1, tokens_BND.shape[2]))
    return tokens_BND.transpose(1, 2).unflatten(2, grid)
