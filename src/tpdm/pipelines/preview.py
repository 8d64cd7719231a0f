"""Small pictures of images that are not finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor

from tpdm.devices import average_pool

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32  # latents are pooled to it, which decodes in milliseconds whatever the size of the image


@torch.no_grad()
def decode_preview(pipe: Any, latents: Tensor, width: int | None, height: int | None) -> Image | None:
    """A picture of one image's latents, at most 32 latents wide and high.

    Where the pipeline has a safety checker, it is the picture that the checker leaves.

    Args:
        pipe: their pipeline.
        latents: (1, C, H, W), or FLUX.1's packed (1, N, C).
        width, height: of the image in pixels; None is the pipeline's own.

    Returns:
        None where the latents are of another kind, or the decoder has to change its dtype.
    """
    if not isinstance(pipe.vae, AutoencoderKL) or (pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast):
        return None
    if latents.ndim == 3 and isinstance(pipe, FluxPipeline):
        own = pipe.default_sample_size * pipe.vae_scale_factor
        latents = pipe._unpack_latents(latents, height or own, width or own, pipe.vae_scale_factor)
    if latents.ndim != 4:
        return None
    sides = (min(SIDE, latents.shape[2]), min(SIDE, latents.shape[3]))
    config = pipe.vae.config
    small = average_pool(latents.float(), sides) / config.scaling_factor + (config.shift_factor or 0.0)
    pixels = pipe.vae.decode(small.to(pipe.vae.dtype), return_dict=False)[0]
    flagged = False
    if getattr(pipe, "safety_checker", None) is not None:  # as the pipeline treats its image at the end
        pixels, (flagged,) = pipe.run_safety_checker(pixels, pixels.device, pixels.dtype)
    denormalize = [False] if flagged else None
    image: Image = pipe.image_processor.postprocess(pixels.float(), output_type="pil", do_denormalize=denormalize)[0]
    return image
