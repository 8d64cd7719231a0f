"""Scores of tinyworld images by the scene reader, which training does not use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tpdm.core.io import to_uint8


class TinyworldJudge:
    """Scores images by reading the scene from the pixels.

    ``accuracy`` is the share of the caption that is in the image. ``residual`` is the root mean square distance (0 to
    255) to the nearest image that the renderer can draw, lower is better. ``objects`` is the number of objects that the
    caption names.
    """

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[dict[str, float]]:
        """Return one dictionary of scores per image.

        Args:
            images_B3HW: Images in [0, 1], (B, 3, 64, 64).
            prompts: One caption per image.
        """
        from tpdm.tinyworld.grammar import parse
        from tpdm.tinyworld.scene_reader import accuracy, read_scenes

        asked = [parse(p) for p in prompts]
        readings = read_scenes(to_uint8(images_B3HW))
        return [
            {"accuracy": accuracy(a, r.scene), "residual": r.residual, "objects": float(len(a.objects))}
            for a, r in zip(asked, readings, strict=True)
        ]
