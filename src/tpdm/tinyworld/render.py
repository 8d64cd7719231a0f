"""Renderer of tinyworld: 64 x 64 pixels, anti-aliased, each object a sprite on one of sixteen places."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

from tpdm.tinyworld.grammar import BACKGROUNDS, COLORS, COLUMNS, ROWS, SHAPES, SIZES, TEXTURES, Scene

IMAGE_SIZE = 64
SPRITE_SIZE = 16  # a place is 2 x 2 latents, one token of the denoiser
RADII = {"small": 4.6, "large": 7.6}
SHADE = 0.45  # the darker tone of a texture, as a share of the color
_SUPERSAMPLE = 8


def place_origin(row: str, column: str) -> tuple[int, int]:
    """Return the top and left pixel of a place."""
    return ROWS.index(row) * SPRITE_SIZE, COLUMNS.index(column) * SPRITE_SIZE


def _inside(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    distance = np.hypot(x, y)
    if shape == "circle":
        return distance <= radius
    if shape == "ring":
        return (distance <= radius) & (distance >= 0.5 * radius)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85 * radius
    if shape == "diamond":
        return abs(x) + abs(y) <= 1.1 * radius
    if shape == "cross":
        arm = radius / 3.2
        return (np.maximum(abs(x), abs(y)) <= radius) & (np.minimum(abs(x), abs(y)) <= arm)
    return (y <= 0.8 * radius) & (y >= 2 * abs(x) - radius)  # triangle, point up


def _shaded(texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if texture == "striped":
        return np.floor(y / 2).astype(int) % 2 == 0
    if texture == "checked":
        return (np.floor(x / 3).astype(int) + np.floor(y / 3).astype(int)) % 2 == 0
    if texture == "dotted":
        return np.hypot((x % 4) - 2, (y % 4) - 2) < 1.3
    return np.zeros(x.shape, dtype=bool)


@lru_cache(maxsize=1)
def sprites() -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]:
    """Return coverage and tone of every (shape, size, texture), each (16, 16) in [0, 1].

    A pixel is ``background * (1 - coverage) + color * tone``, where tone <= coverage.
    """
    fine = SPRITE_SIZE * _SUPERSAMPLE
    axis = (np.arange(fine) + 0.5) / _SUPERSAMPLE - SPRITE_SIZE / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    bank = {}
    for shape, size, texture in product(SHAPES, SIZES, TEXTURES):
        inside = _inside(shape, x, y, RADII[size]).astype(np.float32)
        tone = inside * np.where(_shaded(texture, x, y), SHADE, 1.0)
        bank[shape, size, texture] = (_shrink(inside), _shrink(tone.astype(np.float32)))
    return bank


def _shrink(fine: np.ndarray) -> np.ndarray:
    return fine.reshape(SPRITE_SIZE, _SUPERSAMPLE, SPRITE_SIZE, _SUPERSAMPLE).mean(axis=(1, 3))


def render(scene: Scene) -> np.ndarray:
    """Render a scene with all attributes, as uint8 (64, 64, 3).

    Example:
        >>> from tpdm.tinyworld.grammar import parse
        >>> image = render(parse("large plain red square top left on black"))
        >>> image.shape, image[8, 24].tolist()
        ((64, 64, 3), [220, 40, 40])
    """
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    canvas[:] = BACKGROUNDS[decided(scene.background)]
    for o in scene.objects:
        coverage, tone = sprites()[decided(o.shape), decided(o.size), decided(o.texture)]
        top, left = place_origin(decided(o.row), decided(o.column))
        window = canvas[top : top + SPRITE_SIZE, left : left + SPRITE_SIZE]
        color = np.asarray(COLORS[decided(o.color)], dtype=np.float32)
        window *= 1 - coverage[..., None]
        window += tone[..., None] * color
    return np.round(canvas).astype(np.uint8)


def decided(value: str | None) -> str:
    """Return an attribute, or raise an error if it is open."""
    if value is None:
        raise ValueError("The scene has open attributes and cannot be drawn. Draw a scene of sample_scene.")
    return value
