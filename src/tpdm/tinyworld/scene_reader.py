"""Reading of scenes from pixels, and the share of a caption that is in a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tpdm.tinyworld.grammar import BACKGROUNDS, COLORS, COLUMNS, ROWS, Scene, SceneObject
from tpdm.tinyworld.render import IMAGE_SIZE, SPRITE_SIZE, sprites


def accuracy(asked: Scene, seen: Scene) -> float:
    """Compute the share of a caption that is in a scene, in [0, 1].

    The caption's objects are matched with different objects of the scene, so that as many as possible fit all named
    attributes. The count is divided by the larger number of objects, so that extra objects cost as much as missing
    ones. A named background counts as one more object.

    Args:
        asked: Scene of the caption, with open attributes.
        seen: Scene of the image.

    Example:
        >>> from tpdm.tinyworld.grammar import parse
        >>> scene = parse("large plain red circle top left and small plain blue ring lower right")
        >>> accuracy(parse("red circle and red object"), scene)
        0.5
    """
    right = matched_objects(asked.objects, seen.objects)
    total = max(len(asked.objects), len(seen.objects))
    if asked.background is not None:
        right += asked.background == seen.background
        total += 1
    return right / max(1, total)


def matched_objects(asked: Sequence[SceneObject], seen: Sequence[SceneObject]) -> int:
    """Return the size of the largest matching between descriptions and objects that fit them."""
    fits = [[i for i, s in enumerate(seen) if a.admits(s)] for a in asked]
    owner: dict[int, int] = {}

    def claim(a: int, tried: set[int]) -> bool:
        for s in fits[a]:
            if s not in tried:
                tried.add(s)
                if s not in owner or claim(owner[s], tried):
                    owner[s] = a
                    return True
        return False

    return sum(claim(a, set()) for a in range(len(asked)))


_PALETTE = np.asarray(list(COLORS.values()), dtype=np.float32)


@dataclass(frozen=True)
class Reading:
    """Result of reading one image.

    Attributes:
        scene: Background and objects, fully described.
        residual: Root mean square distance (0 to 255) between the image and the nearest one that the renderer can draw.
            About 0.3 on a clean render (rounding). Larger if the image is blurred, noisy or malformed.
    """

    scene: Scene
    residual: float


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Coverage and tone of every sprite, each (S, 256)."""
    bank = sprites().values()
    return np.stack([m.ravel() for m, _ in bank]), np.stack([s.ravel() for _, s in bank])


def read_scenes(images_BHWC: np.ndarray) -> list[Reading]:
    """Read the scenes of images.

    Args:
        images_BHWC: Images, uint8 (B, 64, 64, 3).

    Returns:
        One reading per image, in order.

    Raises:
        ValueError: The images are not 64 x 64 RGB bytes.

    Example:
        >>> from tpdm.tinyworld.grammar import parse
        >>> from tpdm.tinyworld.render import render
        >>> caption = "large plain red circle top left on black"
        >>> read_scenes(render(parse(caption))[None])[0].scene.caption() == caption
        True
    """
    if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"images is {images_BHWC.dtype} {images_BHWC.shape}. It must be uint8 of shape (B, 64, 64, 3)."
        )
    return [_read(image.astype(np.float32)) for image in images_BHWC]


def _read(image: np.ndarray) -> Reading:
    n = len(ROWS)
    places = image.reshape(n, SPRITE_SIZE, n, SPRITE_SIZE, 3).swapaxes(1, 2).reshape(n * n, -1, 3)
    best: Reading | None = None
    for background in BACKGROUNDS:
        objects, error = _explain(places, background)
        residual = float(np.sqrt(error / image.size))
        if best is None or residual < best.residual:
            best = Reading(Scene(objects, background), residual)
    assert best is not None
    return best


def _explain(places: np.ndarray, background: str) -> tuple[tuple[SceneObject, ...], float]:
    """The objects that explain the places (16, 256, 3) best on a background, and the remaining squared error.

    With y = image - background b, coverage m, tone s and color c the error of a sprite is
    |y - (s c - m b)|^2 = |y|^2 - 2 <y, s c - m b> + |s c - m b|^2, which is a few matrix products.
    """
    b = np.asarray(BACKGROUNDS[background], dtype=np.float32)
    y = places - b
    coverage, tone = _templates()
    empty_P = np.square(y).sum(axis=(1, 2))
    overlap_PSC = tone @ (y @ _PALETTE.T) - (coverage @ (y @ b[:, None]))
    error_PSC = empty_P[:, None, None] - 2 * overlap_PSC + _template_energy(background)
    flat = error_PSC.reshape(len(places), -1)
    best_P = flat.argmin(axis=1)
    error_P = flat[np.arange(len(places)), best_P]
    objects = [_object(p, int(best_P[p])) for p in range(len(places)) if error_P[p] < empty_P[p]]
    return tuple(objects), float(np.maximum(np.minimum(error_P, empty_P), 0).sum())


def _object(place: int, index: int) -> SceneObject:
    sprite, color = divmod(index, len(COLORS))
    shape, size, texture = list(sprites())[sprite]
    row, column = divmod(place, len(COLUMNS))
    return SceneObject(size, texture, list(COLORS)[color], shape, ROWS[row], COLUMNS[column])


@lru_cache(maxsize=len(BACKGROUNDS))
def _template_energy(background: str) -> np.ndarray:
    """|s c - m b|^2 for every sprite and color, (S, 8)."""
    b = np.asarray(BACKGROUNDS[background], dtype=np.float32)
    m, s = _templates()
    ss, sm, mm = (s * s).sum(1), (s * m).sum(1), (m * m).sum(1)
    return ss[:, None] * (_PALETTE**2).sum(1) - 2 * sm[:, None] * (_PALETTE @ b) + mm[:, None] * (b @ b)
