"""Rules for the token grid of a denoiser call, used by the table in ``registry``.

Each rule takes the arguments of one denoiser call by name, and the denoiser. It returns (H, W) in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Grid = Callable[[Mapping[str, Any], Any], tuple[int, int]]
Starts = Callable[[Mapping[str, Any], Any], Tensor]


def grid_of_latents(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Grid of latents (B, C, H, W) in square patches."""
    height, width = arguments["hidden_states"].shape[-2:]
    patch = denoiser.config.patch_size
    return height // patch, width // patch


def grid_of_latent_list(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Grid of a list of latents (C, 1, H, W), all of one size, in square patches."""
    height, width = arguments["x"][0].shape[-2:]
    patch = arguments.get("patch_size", 2)  # Z-Image's pipeline does not pass this argument
    return height // patch, width // patch


def grid_of_unet_latents(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Grid of latents (B, C, H, W), one token each: first and last layer of a UNet have full resolution."""
    height, width = arguments["sample"].shape[-2:]
    return height, width


def grid_of_video(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Grid of latents (B, C, F, H, W): the grids of the frames below each other, (F H, W) in patches."""
    frames, height, width = arguments["hidden_states"].shape[-3:]
    patch_f, patch_h, patch_w = denoiser.config.patch_size
    return (frames // patch_f) * (height // patch_h), width // patch_w


def grid_of_position_ids(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Grid of packed tokens with ids (N, 3 or 4) = (image, row, column, ...). Image 0 is the generated one."""
    ids = arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids  # older pipelines and FLUX.2's repeat ids per image
    last = ids[ids[:, 0] == 0].amax(0).tolist()
    return int(last[1]) + 1, int(last[2]) + 1


def grid_of_image_shapes(arguments: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    """Grid of packed tokens with (frames, height, width) of every image of every row. The first one is generated."""
    first = arguments["img_shapes"][0]
    _, height, width = first[0] if isinstance(first, list) else first
    return height, width


def text_lengths(arguments: Mapping[str, Any], denoiser: Any) -> Tensor:
    """Returns the number of text tokens of each row, int64 (B,). The image tokens follow them."""
    mask: Tensor = arguments["encoder_attention_mask"]
    return mask.long().sum(1)
