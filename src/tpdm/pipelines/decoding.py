"""Pictures decoded a few at a time: the decoder's activations, not the denoiser's, are what 1024 pixels cost most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


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
