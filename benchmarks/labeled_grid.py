"""Pictures of tinyworld for people: a labeled grid of what the embedded pipeline draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tpdm.core.io import write_atomically

_SCALE, _COLUMNS, _TEXT_HEIGHT, _GAP = 3, 5, 62, 10


def labeled_grid(images_BHWC: np.ndarray, labels: Sequence[str], path: Path) -> Path:
    """Writes a PNG of the pictures, three times their size, each above its caption.

    Args:
        images_BHWC: uint8.
        labels: one per picture.
        path: of the PNG.
    """
    side = images_BHWC.shape[1] * _SCALE
    rows = -(-len(labels) // _COLUMNS)
    size = (_COLUMNS * (side + _GAP) + _GAP, rows * (side + _TEXT_HEIGHT + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (pixels, label) in enumerate(zip(images_BHWC, labels, strict=True)):
        row, column = divmod(i, _COLUMNS)
        x, y = _GAP + column * (side + _GAP), _GAP + row * (side + _TEXT_HEIGHT + _GAP)
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.multiline_text((x, y + side + 3), "\n".join(wrap(label, 32)[:4]), fill="black", font=font, spacing=2)
    return write_atomically(path, lambda p: sheet.save(p, format="PNG"))
