"""Which calls of a pipeline can meet in one denoiser call, and on which grid, told from their arguments alone."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import torch

from tpdm.pipelines.guidance import is_doubled
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.pipelines.token_grids import grid_of_image_shapes, grid_of_position_ids, grid_of_video

OWN_SIDE = {"ZImagePipeline": 1024}  # where neither the signature nor an attribute says it


def batch_key(pipe: Any, arguments: Mapping[str, Any]) -> Hashable:
    """Calls of other kinds cannot meet: their latents have another shape, or guidance doubles their rows.

    Args:
        pipe: the pipeline.
        arguments: of its call, with all defaults that are not the pipeline's.
    """
    return token_grid(pipe, arguments) or _size(pipe, arguments), is_doubled(pipe, arguments)


def token_grid(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) of the image tokens of a call; None where only the call itself can tell.

    Args:
        pipe: the pipeline.
        arguments: of its call, with all defaults that are not the pipeline's.
    """
    denoiser = find_denoiser(pipe)
    entry, (height, width) = find_entry(denoiser), _size(pipe, arguments)
    ratio = vars(pipe).get("vae_scale_factor")
    # Binning takes the nearest size of a table, and gives the picture the size that was asked for at the end.
    binned = arguments.get("use_resolution_binning", _default(pipe, "use_resolution_binning"))
    if None in (height, width, ratio) or binned or entry.grid is grid_of_video:
        return None
    if entry.grid in (grid_of_position_ids, grid_of_image_shapes):
        return height // (2 * ratio), width // (2 * ratio)  # packed: two latents by two are a token
    latents = torch.empty(1, 1, height // ratio, width // ratio, dtype=torch.float32, device="meta")
    return entry.grid({entry.sample: [latents] if entry.sample in entry.listed else latents}, denoiser)


def _size(pipe: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """(height, width) in pixels, None where it is not known."""
    own = _own_size(pipe)
    height, width = (arguments.get(name) or _default(pipe, name) for name in ("height", "width"))
    return height or own[0], width or own[1]


def _own_size(pipe: Any) -> tuple[Any, Any]:
    side = OWN_SIDE.get(type(pipe).__name__)
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
