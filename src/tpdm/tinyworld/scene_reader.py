"""How much of what a caption asks for is in a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tpdm.tinyworld.grammar import BACKGROUNDS, COLORS, COLUMNS, ROWS, Scene, SceneObject
from tpdm.tinyworld.render import IMAGE_SIZE, SPRITE_SIZE, sprites


def accuracy(asked: Scene, seen: Scene) -> float:
    """Share of what was asked that is there, in [0, 1].

    The objects asked for are matched with different objects seen so that as many as possible fit every attribute the
    caption names; the count is divided by the larger of the two numbers of objects, so that extra objects cost as
    much as missing ones. A background counts as one more object where the caption names it.
    """
    right = matched_objects(asked.objects, seen.objects)
    total = max(len(asked.objects), len(seen.objects))
    if asked.background is not None:
        right += asked.background == seen.background
        total += 1
    return right / max(1, total)


def matched_objects(asked: Sequence[SceneObject], seen: Sequence[SceneObject]) -> int:
    """Size of the largest matching between descriptions and objects that they admit."""
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
    """What was seen in one picture.

    Attributes:
        scene: background and objects, fully described.
        residual: root mean square distance (0 to 255) between the picture and the nearest one the renderer can
            draw; about 0.3 on a clean render (rounding), larger where it is blurred, noisy or malformed.
    """

    scene: Scene
    residual: float


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Coverage and tone of every sprite, each (S, 256)."""
    bank = sprites().values()
    return np.stack([m.ravel() for m, _ in bank]), np.stack([s.ravel() for _, s in bank])


def read_scenes(images_BHWC: np.ndarray) -> list[Reading]:
    """Reads pictures.

    Args:
        images_BHWC: uint8, (B, 64, 64, 3).

    Returns:
        One reading a picture, in order.

    Raises:
        ValueError: the pictures are not 64 x 64 RGB bytes.
    """
    if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"got {images_BHWC.dtype} {images_BHWC.shape}; expected uint8 of shape (B, 64, 64, 3)")
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
    """The objects that explain the places (16, 256, 3) best before a background, and the squared error left.

    With y = picture - background b, coverage m, tone s and color c the error of a sprite is
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
