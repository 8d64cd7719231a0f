"""Judges that no reward knows of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor


class Judge(Protocol):
    """Measures images against their prompts, independently of the training reward."""

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[dict[str, float]]:
        """One dictionary of named measures per image; the same names for all."""


def to_bytes(images_B3HW: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1] to uint8 (B, H, W, 3)."""
    return (images_B3HW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


class TinyworldJudge:
    """Reads the scene back from the pixels.

    ``accuracy``: share of the caption that is in the picture. ``residual``: root mean square distance (0 to 255) to
    the nearest picture that the renderer can draw, lower is better. ``objects``: objects the caption names.
    """

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[dict[str, float]]:
        """See the class."""
        from tpdm.tinyworld.grammar import parse
        from tpdm.tinyworld.matching import accuracy
        from tpdm.tinyworld.reader import read_scenes

        asked = [parse(p) for p in prompts]
        readings = read_scenes(to_bytes(images_B3HW))
        return [
            {"accuracy": accuracy(a, r.scene), "residual": r.residual, "objects": float(len(a.objects))}
            for a, r in zip(asked, readings, strict=True)
        ]
