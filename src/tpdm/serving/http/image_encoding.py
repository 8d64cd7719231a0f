"""The files that pictures are sent as."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image

Format = Literal["png", "jpeg", "webp"]
LONGEST: dict[Format, int] = {"jpeg": 65_500, "webp": 16_383}  # pixels a side that the files of a format can have


@dataclass(frozen=True)
class Encoding:
    """How a picture becomes a file.

    Attributes:
        format: of the file; also its ending, and the second half of its media type.
        quality: 0 (smallest file) to 100 (least loss), of jpeg and webp; a png loses nothing.
    """

    format: Format = "png"
    quality: int = 100

    def encode(self, image: Image) -> bytes:
        """The file."""
        options: dict[str, Any] = {} if self.format == "png" else {"quality": self.quality}
        if self.format == "jpeg":
            options["subsampling"] = 0  # else colors lose half their resolution even at 100
        buffer = io.BytesIO()
        image.save(buffer, format=self.format, **options)
        return buffer.getvalue()


def media_type(name: str) -> str:
    """Of a file that is called so."""
    return f"image/{name.rpartition('.')[2]}"


def b64(content: bytes) -> str:
    """Bytes as JSON carries them."""
    return base64.b64encode(content).decode("ascii")
