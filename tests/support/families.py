"""Every family of pipelines that tpdm drives, as data: how to build a tiny one, how to call it, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from tests.support import tiny_families as tiny
from tests.support.tiny_flux import make_tiny_flux

TOKENS = 5


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        build: makes the pipe.
        embeds: names of the prompt embeddings (rows, 5, 16), one row per image; "negative_" goes before them for the
            unconditional ones.
        pooled: names of pooled embeddings (rows, 16).
        masks: names of masks (rows, 5).
        guided: arguments that switch guidance on; empty where there is none.
        plain: arguments that switch it off.
        call: further arguments.
        listed: embeddings are a list of (length, 16), of different lengths.
        calls: denoiser calls per guided step; rows: rows of each of them, per image.
        tolerance: max |d| between an image in a batch and alone.
        width: of the embeddings.
    """

    build: Callable[[], Any]
    embeds: tuple[str, ...] = ("prompt_embeds",)
    pooled: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    guided: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    listed: bool = False
    calls: int = 1
    rows: int = 1
    tolerance: float = 2e-6
    width: int = tiny.WIDTH

    def text(self, images: int, guided: bool = True) -> dict[str, Any]:
        """Arguments with one row per image: row b is the same whatever the number of images."""
        signs = ("", "negative_") if guided and self.guided else ("",)
        return {sign + name: self._rows(name, sign, images) for sign in signs for name in self._names()}

    def arguments(self, guided: bool = True) -> dict[str, Any]:
        """All other arguments."""
        return {**self.call, **(self.guided if guided else self.plain), "output_type": "latent"}

    def _names(self) -> tuple[str, ...]:
        return (*self.embeds, *self.pooled, *self.masks)

    def _rows(self, name: str, sign: str, images: int) -> Any:
        rows = [self._row(name, sign, b) for b in range(images)]
        return rows if self.listed else torch.stack(rows)

    def _row(self, name: str, sign: str, b: int) -> torch.Tensor:
        if name in self.masks:
            # Different lengths, the longest last, so that no batch is shorter than its parts.
            return (torch.arange(TOKENS) < TOKENS - (b + len(sign)) % 2).long()
        shape = (self.width,) if name in self.pooled else (TOKENS + (b if self.listed else 0), self.width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(100 * b + len(sign) + len(name)))


SIZE = {"height": 24, "width": 16}
ONE_CALL: dict[str, Any] = {"guided": {"guidance_scale": 4.0}, "plain": {"guidance_scale": 1.0}, "rows": 2}
TWO_CALLS: dict[str, Any] = {**ONE_CALL, "rows": 1, "calls": 2}
TRUE_CFG: dict[str, Any] = {"guided": {"true_cfg_scale": 3.0}, "calls": 2}
MASK = ("prompt_attention_mask",)
POOLED = ("pooled_prompt_embeds",)
UNBINNED = {"use_resolution_binning": False, "negative_prompt": None}

FLOW_FAMILIES: dict[str, Family] = {
    "SD3": Family(tiny.make_sd3, pooled=POOLED, call=SIZE, **ONE_CALL),
    "SD3.5": Family(tiny.make_sd35, pooled=POOLED, call=SIZE, **ONE_CALL),
    "FLUX.1 dev": Family(make_tiny_flux, pooled=POOLED, call=SIZE),
    "FLUX.1 dev, true CFG": Family(make_tiny_flux, pooled=POOLED, call=SIZE, **TRUE_CFG),
    "FLUX.1 schnell": Family(tiny.make_schnell, pooled=POOLED, call=SIZE),
    "FLUX.2": Family(tiny.make_flux2, call={"height": 48, "width": 32}),
    "Qwen-Image": Family(tiny.make_qwen, masks=("prompt_embeds_mask",), call={"height": 48, "width": 32}, **TRUE_CFG),
    "Sana": Family(tiny.make_sana, masks=MASK, call={"height": 96, "width": 64, **UNBINNED}, **ONE_CALL),
    "Lumina2": Family(tiny.make_lumina2, masks=MASK, call={"height": 96, "width": 64}, **TWO_CALLS),
    "Z-Image": Family(
        tiny.make_z_image,
        listed=True,
        call=SIZE,
        guided={"guidance_scale": 4.0},
        plain={"guidance_scale": 0.0},
        rows=2,
    ),
    "Wan 2.1": Family(tiny.make_wan, call={"height": 48, "width": 32, "num_frames": 5}, **TWO_CALLS),
}
VP_FAMILIES: dict[str, Family] = {
    name: Family(partial(build, prediction), tolerance=8e-6, **options)
    for prediction, mark in (("epsilon", ""), ("v_prediction", ", v-prediction"))
    for name, build, options in (
        (f"SD1.5{mark}", tiny.make_sd15, {"call": SIZE, **ONE_CALL}),
        (f"SDXL{mark}", tiny.make_sdxl, {"pooled": POOLED, "call": SIZE, **ONE_CALL}),
        (f"PixArt-Sigma{mark}", tiny.make_pixart, {"masks": MASK, "call": {**SIZE, **UNBINNED}, **ONE_CALL}),
    )
}
FAMILIES = {**FLOW_FAMILIES, **VP_FAMILIES}


@cache
def tiny_pipe(name: str) -> Any:
    """The pipe of a family, with the same weights in every process."""
    torch.manual_seed(0)
    return FAMILIES[name].build()
