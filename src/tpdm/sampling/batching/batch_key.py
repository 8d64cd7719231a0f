"""The batch key and the token grid of a pipeline call, computed from its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import torch

from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.pipelines.token_grids import grid_of_image_shapes, grid_of_position_ids, grid_of_video

DEFAULT_SIDES = {"ZImagePipeline": 1024}  # pixels, for pipelines without a default in signature or attributes


def batch_key(pipe: Any, arguments: Mapping[str, Any]) -> Hashable:
    """Returns a key of the shape of the latents and of guidance, which doubles the rows.

    Calls with different keys cannot share a denoiser batch.

    Args:
        pipe: Diffusers pipeline.
        arguments: Arguments of its call, with all defaults except those of the pipeline.
    """
    return token_grid(pipe, arguments) or _size(pipe, arguments), Guidance.of(pipe).is_doubled(arguments)


def token_grid(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the grid (H, W) of the image tokens of a call. None if only the call itself determines it.

    Args:
        pipe: Diffusers pipeline.
        arguments: Arguments of its call, with all defaults except those of the pipeline.
    """
    denoiser = find_denoiser(pipe)
    entry, (height, width) = find_entry(denoiser), _size(pipe, arguments)
    ratio = vars(pipe).get("vae_scale_factor")
    # Binning uses the nearest size of a table, and resizes the image at the end.
    binned = arguments.get("use_resolution_binning", _default(pipe, "use_resolution_binning"))
    if None in (height, width, ratio) or binned or entry.grid is grid_of_video:
        return None
    if entry.grid in (grid_of_position_ids, grid_of_image_shapes):
        return height // (2 * ratio), width // (2 * ratio)  # packed: a token is 2 x 2 latents
    latents = torch.empty(1, 1, height // ratio, width // ratio, dtype=torch.float32, device="meta")
    return entry.grid({entry.sample: [latents] if entry.sample in entry.listed else latents}, denoiser)


def _size(pipe: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """(height, width) in pixels, None where unknown."""
    own = _own_size(pipe)
    height, width = (arguments.get(name) or _default(pipe, name) for name in ("height", "width"))
    return height or own[0], width or own[1]


def _own_size(pipe: Any) -> tuple[Any, Any]:
    side = DEFAULT_SIDES.get(type(pipe).__name__)
    latents, ratio = vars(pipe).get("default_sample_size"), vars(pipe).get("vae_scale_factor")
    if latents is None:
        config: Any = find_denoiser(pipe).config
        latents = config.get("sample_size")
    if side is not None or latents is None or ratio is None:
        return side, side
    height, width = latents if isinstance(latents, list | tuple) else (latents, latents)
    return height * ratio, width * ratio


def _default(pipe: Any, name: str) -> Any:
    cls: Any = type(pipe)
    parameter = _parameters(cls).get(name)
    return None if parameter is None else parameter.default


@cache
def _parameters(cls: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__call__).parameters
