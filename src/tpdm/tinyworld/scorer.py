"""Scores of pictures of the embedded model by the scene reader, which training never sees."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tpdm.core.io import to_uint8


class TinyworldJudge:
    """Reads the scene back from the pixels.

    ``accuracy``: share of the caption that is in the picture. ``residual``: root mean square distance (0 to 255) to
    the nearest picture that the renderer can draw, lower is better. ``objects``: objects the caption names.
    """

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[dict[str, float]]:
        """See the class."""
        from tpdm.tinyworld.grammar import parse
        from tpdm.tinyworld.scene_reader import accuracy, read_scenes

        asked = [parse(p) for p in prompts]
        readings = read_scenes(to_uint8(images_B3HW))
        return [
            {"accuracy": accuracy(a, r.scene), "residual": r.residual, "objects": float(len(a.objects))}
            for a, r in zip(asked, readings, strict=True)
        ]
