"""VAE decoding in slices, which limits its memory, and small previews of latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor

from tpdm.core.device import average_pool

if TYPE_CHECKING:
    from PIL.Image import Image


@contextmanager
def decoding_in_slices(pipe: Any, size: int | None) -> Iterator[None]:
    """Context manager in which ``pipe.vae.decode`` decodes at most ``size`` images at once.

    At 1024 pixels the activations of the decoder need more memory than those of the denoiser. The pipeline's own code
    around decoding (scaling, unpacking) runs on the whole batch. diffusers' ``vae.enable_slicing()`` is the same for
    one image at a time.

    Args:
        pipe: Pipeline with or without a VAE.
        size: Maximum number of images per call, >= 1. None decodes all at once.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or size is None:
        yield
        return
    decode_batch = vae.decode

    def decode(z: Tensor, return_dict: bool = True, **options: Any) -> Any:
        parts = [decode_batch(part, return_dict=False, **options)[0] for part in z.split(size)]
        sample = torch.cat(parts)
        if not return_dict:
            return (sample,)
        from diffusers.models.autoencoders.vae import DecoderOutput

        return DecoderOutput(sample=sample)

    vae.decode = decode
    try:
        yield
    finally:
        del vae.decode


SIDE = 32  # latents are pooled to this side, so that decoding takes milliseconds at any image size


@torch.no_grad()
def decode_preview(pipe: Any, latents: Tensor, width: int | None, height: int | None) -> Image | None:
    """Decodes a small preview of one image's latents, at most 32 latents wide and high.

    If the pipeline has a safety checker, it is applied to the preview.

    Args:
        pipe: Pipeline of the latents.
        latents: (1, C, H, W), or FLUX.1's packed (1, N, C).
        width, height: Size of the image in pixels. None is the pipeline's default.

    Returns:
        The preview. None if the latents have another layout, or the decoder has to change its dtype.
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
    if getattr(pipe, "safety_checker", None) is not None:  # as in the pipeline itself
        pixels, (flagged,) = pipe.run_safety_checker(pixels, pixels.device, pixels.dtype)
    denormalize = [False] if flagged else None
    image: Image = pipe.image_processor.postprocess(pixels.float(), output_type="pil", do_denormalize=denormalize)[0]
    return image
