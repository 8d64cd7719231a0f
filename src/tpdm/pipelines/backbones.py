"""What tpdm knows of each denoiser class: one row of a table, and no code of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tpdm.types import BackboneError

Guidance = Literal["uncond_cond", "cond_uncond", "two_calls"]
Grid = Callable[[Mapping[str, Any], Any], tuple[int, int]]


@dataclass(frozen=True)
class TapEntry:
    """What tpdm has to know of one denoiser class.

    Attributes:
        first: module path whose output is the tokens entering the first block, (B, N, D).
        last: module path whose first input is the tokens leaving the last block, (B, N, D).
        temb: module path whose output is the time embedding, (B, E).
        grid: (arguments of a denoiser call, denoiser) -> (H, W) of its raster image tokens, which
            come first; further ones (of reference images) are cut.
        time_scale: the denoiser is fed ``time_scale * t``.
        guidance: how conditional rows are told from unconditional ones. "uncond_cond": one call on
            [uncond, cond]; "cond_uncond": the reverse; "two_calls": the conditional call comes first.
        guidance_scale: the pipeline's argument that is w in u + w (c - u).
        temb_index: element of the temb module's output, where that is a tuple.
        sample: argument that holds the latents; its dimension 0 is the number of rows.
        unbatched: tensor arguments whose dimension 0 is never rows (position ids).
    """

    first: str
    last: str
    temb: str
    grid: Grid
    time_scale: float
    guidance: Guidance
    guidance_scale: str = "guidance_scale"
    temb_index: int | None = None
    sample: str = "hidden_states"
    unbatched: frozenset[str] = frozenset()


def grid_of_latents(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Latents (B, C, H, W) cut into square patches."""
    height, width = arguments["hidden_states"].shape[-2:]
    patch = denoiser.config.patch_size
    return height // patch, width // patch


def grid_of_position_ids(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Packed tokens with ids (N, 3) = (image, row, column); image 0 is the one being made."""
    ids = arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids  # older pipelines repeat them per image
    last = ids[ids[:, 0] == 0].amax(0).tolist()
    return int(last[1]) + 1, int(last[2]) + 1


TAPS: dict[str, TapEntry] = {
    "SD3Transformer2DModel": TapEntry(
        "pos_embed", "proj_out", "time_text_embed", grid_of_latents, time_scale=1000.0, guidance="uncond_cond"
    ),
    "FluxTransformer2DModel": TapEntry(
        "x_embedder",
        "proj_out",
        "time_text_embed",
        grid_of_position_ids,
        time_scale=1.0,
        guidance="two_calls",
        guidance_scale="true_cfg_scale",
        unbatched=frozenset({"img_ids", "txt_ids"}),
    ),
}


def find_entry(denoiser: nn.Module) -> TapEntry:
    """The entry of the denoiser's class, or of the nearest parent class that has one.

    Raises:
        BackboneError: there is none.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in TAPS:
            return TAPS[cls.__name__]
    name = type(denoiser).__name__
    raise BackboneError(
        f"got denoiser class {name}, expected one of {', '.join(TAPS)}: add TAPS[{name!r}] = TapEntry(first="
        "<patch embedder>, last=<final projection>, temb=<time embedder>, grid=..., time_scale=..., "
        "guidance=...) to tpdm.pipelines.backbones, or set it from your own code."
    )


def bind_arguments(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """Arguments of a denoiser call by name, however they were passed."""
    return inspect.signature(denoiser.forward).bind(*args, **kwargs)
