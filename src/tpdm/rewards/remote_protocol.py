"""Encode and decode the images of a remote reward: base64 PNGs in JSON."""

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

MAX_BODY = 64 * 2**20  # bytes of a request: 16 images of 1024 x 1024 that do not compress are 64 MiB in base64
MAX_ANSWER = 2**20  # bytes of a response: scores of thousands of images
MAX_PIXELS = 64 * 2**20  # of all images of a request: a small PNG may unpack to gigabytes


def encode_images(images_B3HW: Tensor) -> list[str]:
    """Encode images as base64 PNGs.

    Args:
        images_B3HW: RGB images (B, 3, H, W). Values are clamped to [0, 1] and rounded to multiples of 1/255.

    Returns:
        B strings.

    Example:
        >>> import torch
        >>> decode_images(encode_images(torch.ones(2, 3, 4, 4))).shape
        torch.Size([2, 3, 4, 4])
    """
    return [_encode(image) for image in to_uint8(images_B3HW.detach().float())]


def _encode(image_HWC: np.ndarray) -> str:
    buffer = io.BytesIO()
    # Level 1: on a fast network, compression takes longer than the transfer.
    Image.fromarray(image_HWC).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_images(images: Sequence[str]) -> Tensor:
    """Decode base64 PNGs of the same size.

    Args:
        images: B base64 strings, B >= 1.

    Returns:
        RGB images (B, 3, H, W) in [0, 1], fp32.

    Raises:
        ValueError: If an entry is not base64, not a PNG, too large or of another size. The message is one clause.
    """
    decoded, pixels = [], 0
    for index, text in enumerate(images):
        try:
            image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
            pixels += image.width * image.height
            if pixels <= MAX_PIXELS:
                decoded.append(np.array(image.convert("RGB")))
        except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {index} is not a PNG in base64") from error
        if pixels > MAX_PIXELS:
            raise ValueError(f"images 0 to {index} have {pixels} pixels, the maximum is {MAX_PIXELS}")
        if decoded[-1].shape != decoded[0].shape:
            raise ValueError(f"image {index} is {image.width} x {image.height}, and image 0 has another size")
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
