"""Hooks that read a denoiser's features while a stock pipeline runs it.

One rule covers every family: "first" is a forward hook on the patch embedder, "last" a forward pre-hook on
the final projection, "temb" a forward hook on the time embedder. Their module paths are in ``backbones``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from tpdm.pipelines.backbones import bind_arguments, find_entry
from tpdm.types import BackboneError, Features


@dataclass
class _Capture:
    """What the hooks saw during one denoiser call."""

    grid: tuple[int, int]
    first: Tensor | None = None
    last: Tensor | None = None
    temb: Tensor | None = None


class FeatureTaps:
    """Sets hooks while its ``with`` block lasts, and hands out what the step's denoiser calls computed.

    Args:
        denoiser: the network, of a class in ``backbones.TAPS``.
        guidance: w, for features u + w (c - u) where the pipeline guides; None reads conditional rows alone.

    Raises:
        BackboneError: the class is unknown.
    """

    def __init__(self, denoiser: nn.Module, guidance: float | None = None) -> None:
        self.denoiser, self.entry, self.guidance = denoiser, find_entry(denoiser), guidance
        self._calls: list[_Capture] = []
        self._handles: list[Any] = []

    def __enter__(self) -> FeatureTaps:
        def module(path: str) -> nn.Module:
            return self.denoiser.get_submodule(path)

        entry = self.entry
        self._handles = [
            self.denoiser.register_forward_pre_hook(self._begin, with_kwargs=True),
            module(entry.first).register_forward_hook(lambda _m, _a, out: self._keep(first=out)),
            module(entry.last).register_forward_pre_hook(lambda _m, args: self._keep(last=args[0])),
            module(entry.temb).register_forward_hook(lambda _m, _a, out: self._keep(temb=out)),
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
        calls, self._calls = self._calls, []
        whole = [self._whole(call) for call in calls] or [self._whole(_Capture((0, 0)))]
        *kinds, grids = zip(*whole, strict=True)
        first, last, temb = (self._rows(list(tensors), images) for tensors in kinds)
        return Features(first_BDHW=_as_map(first, grids[0]), last_BDHW=_as_map(last, grids[0]), temb_BE=temb)

    def _whole(self, call: _Capture) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        if call.first is None or call.last is None or call.temb is None:
            raise BackboneError(
                f"got no features from {type(self.denoiser).__name__}, expected its hooks to run in every "
                "step: if it was compiled before, attach first and compile afterwards."
            )
        return call.first, call.last, call.temb, call.grid

    def _rows(self, calls: list[Tensor], images: int) -> Tensor:
        """One row per image: the conditional one, or both combined as the prediction is."""
        # With two calls per step the conditional one comes first, with one call it is the only one.
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
                f"images, expected {images}, or twice that under guidance: correct the TapEntry's guidance."
            )
        second = conditional == (self.entry.guidance == "uncond_cond")
        return rows[images:] if second else rows[:images]

    def _begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = bind_arguments(denoiser, args, kwargs).arguments
        self._calls.append(_Capture(grid=self.entry.grid(arguments, denoiser)))

    def _keep(self, first: Any = None, last: Any = None, temb: Any = None) -> None:
        call = self._calls[-1]
        if first is not None:
            call.first = first
        if last is not None:
            call.last = last
        if temb is not None:
            call.temb = temb if self.entry.temb_index is None else temb[self.entry.temb_index]


def _as_map(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Raster tokens (B, N, D) as a map (B, D, H, W); a view."""
    height, width = grid
    if tokens_BND.shape[1] < height * width:
        raise BackboneError(
            f"got {tokens_BND.shape[1]} tokens for a grid of {height} x {width}, expected at least "
            f"{height * width}: the grid rule of this denoiser's TapEntry does not fit."
        )
    return tokens_BND[:, : height * width].transpose(1, 2).unflatten(2, (height, width))
