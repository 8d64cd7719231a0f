"""What a remote reward sends and gets: JSON with base64 PNGs, never a pickle."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tpdm.core.io import to_uint8

MAX_BODY = 64 * 2**20  # bytes of a request: sixteen pictures of 1024 x 1024 that do not compress are 64 MiB in base64
MAX_ANSWER = 2**20  # bytes of an answer: scores of thousands of images
MAX_PIXELS = 64 * 2**20  # of all pictures of a request: a small PNG may unpack to gigabytes


def encode_images(images_B3HW: Tensor) -> list[str]:
    """Base64 PNGs of RGB images in [0, 1]; 8 bits a channel, so values are rounded to multiples of 1/255."""
    return [_encode(image) for image in to_uint8(images_B3HW.detach().float())]


def _encode(image_HWC: np.ndarray) -> str:
    buffer = io.BytesIO()
    # Level 1: on a fast network the time of packing is what counts.
    Image.fromarray(image_HWC).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_images(images: Sequence[str]) -> Tensor:
    """RGB images (B, 3, H, W) in [0, 1] of base64 PNGs of one size.

    Raises:
        ValueError: an entry is no base64, no PNG, larger than allowed or of another size; one clause that says which.
    """
    decoded, pixels = [], 0
    for index, text in enumerate(images):
        try:
            image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
            pixels += image.width * image.height
            if pixels <= MAX_PIXELS:
                decoded.append(np.array(image.convert("RGB")))
        except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {index} is no PNG in base64") from error
        if pixels > MAX_PIXELS:
            raise ValueError(f"images up to number {index} have {pixels} pixels, {MAX_PIXELS} are allowed")
        if decoded[-1].shape != decoded[0].shape:
            raise ValueError(f"image {index} is {image.width} x {image.height}, the first one is not")
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
