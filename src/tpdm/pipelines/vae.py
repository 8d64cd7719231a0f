"""Pictures decoded a few at a time: the decoder's activations, not the denoiser's, are what 1024 pixels cost most."""

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
    """While it lasts, ``pipe.vae.decode`` decodes at most ``size`` images at once.

    The pipeline's own code around it (scaling, unpacking) runs on the whole batch as ever. diffusers'
    ``vae.enable_slicing()`` is the same for one image at a time.

    Args:
        pipe: a pipeline with or without a VAE.
        size: None decodes all at once.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or size is None:
        yield
        return
    whole = vae.decode

    def decode(z: Tensor, return_dict: bool = True, **options: Any) -> Any:
        parts = [whole(part, return_dict=False, **options)[0] for part in z.split(size)]
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
