"""File formats of the images in answers."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image

Format = Literal["png", "jpeg", "webp"]
LONGEST: dict[Format, int] = {"jpeg": 65_500, "webp": 16_383}  # maximum length of a side in pixels


@dataclass(frozen=True)
class Encoding:
    """File format of an image.

    Attributes:
        format: Name of the format, which is also the suffix of the file and part of its media type.
        quality: Quality of jpeg and webp from 0 (smallest file) to 100 (least loss). png is lossless.
    """

    format: Format = "png"
    quality: int = 100

    def encode(self, image: Image) -> bytes:
        """Returns the content of the file."""
        options: dict[str, Any] = {} if self.format == "png" else {"quality": self.quality}
        if self.format == "jpeg":
            options["subsampling"] = 0  # else colors have half the resolution even at quality 100
        buffer = io.BytesIO()
        image.save(buffer, format=self.format, **options)
        return buffer.getvalue()


def media_type(name: str) -> str:
    """Returns the media type of a file by its suffix.

    Example:
        >>> media_type("a.webp")
        'image/webp'
    """
    return f"image/{name.rpartition('.')[2]}"


def b64(content: bytes) -> str:
    """Returns bytes in base64."""
    return base64.b64encode(content).decode("ascii")
