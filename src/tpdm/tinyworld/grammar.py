"""The scenes of tinyworld and the captions that describe them.

A scene is one to six objects on a 4 x 4 grid of places over a plain background. A caption names the objects one by one
and may leave any attribute open ("object and large circle top" does not say what the first object is). The model
decides open attributes, which takes denoising steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (50, 180, 70),
    "blue": (50, 90, 230),
    "yellow": (245, 215, 50),
    "orange": (245, 140, 30),
    "purple": (160, 70, 200),
    "cyan": (70, 210, 225),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "checked", "dotted")
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("leftmost", "left", "right", "rightmost")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 16),
    "gray": (170, 170, 175),
    "navy": (20, 28, 80),
    "brown": (95, 62, 40),
}
ATTRIBUTES = ("size", "texture", "color", "shape", "row", "column")

MAX_OBJECTS = 6
MAX_WORDS = 30  # with start and end a caption fits 32 tokens
OBJECT_COUNT_WEIGHTS = (0.18, 0.20, 0.20, 0.16, 0.14, 0.12)
KEEP_LEVELS = (1.0, 0.75, 0.45, 0.15)  # share of a scene that a caption describes, equally likely

WORDS = ("object", "and", "on", *SIZES, *TEXTURES, *COLORS, *SHAPES, *ROWS, *COLUMNS, *BACKGROUNDS)


@dataclass(frozen=True)
class SceneObject:
    """One object of an image or of a caption. None means that a caption leaves the attribute open."""

    size: str | None
    texture: str | None
    color: str | None
    shape: str | None
    row: str | None
    column: str | None

    def words(self) -> list[str]:
        """Return the words of the object in a caption, without open attributes."""
        named = (self.size, self.texture, self.color, self.shape or "object", self.row, self.column)
        return [word for word in named if word is not None]

    def admits(self, seen: SceneObject) -> bool:
        """Return whether a fully described object fits this description."""
        return all(getattr(self, a) in (None, getattr(seen, a)) for a in ATTRIBUTES)


@dataclass(frozen=True)
class Scene:
    """The objects of an image, or (with open attributes) of a caption."""

    objects: tuple[SceneObject, ...]
    background: str | None

    def caption(self) -> str:
        """Return the text of the caption.

        Example:
            >>> parse("large red circle top and object on navy").caption()
            'large red circle top and object on navy'
        """
        parts = [" ".join(o.words()) for o in self.objects]
        tail = f" on {self.background}" if self.background else ""
        return " and ".join(parts) + tail


def sample_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """Draw a scene with all attributes.

    Args:
        rng: Random generator.
        count: Number of objects, 1 to 16. None draws 1 to 6 from ``OBJECT_COUNT_WEIGHTS``.
    """
    n = count or int(rng.choice(MAX_OBJECTS, p=OBJECT_COUNT_WEIGHTS)) + 1
    places = rng.choice(len(ROWS) * len(COLUMNS), size=n, replace=False)
    objects = tuple(
        SceneObject(
            size=SIZES[rng.integers(len(SIZES))],
            texture=TEXTURES[rng.integers(len(TEXTURES))],
            color=list(COLORS)[rng.integers(len(COLORS))],
            shape=SHAPES[rng.integers(len(SHAPES))],
            row=ROWS[p // len(COLUMNS)],
            column=COLUMNS[p % len(COLUMNS)],
        )
        for p in places
    )
    return Scene(objects, list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))])


def describe(scene: Scene, rng: np.random.Generator, keep: float | None = None) -> Scene:
    """Describe a scene with open attributes, in few enough words for the text encoders.

    Args:
        scene: Scene with all attributes.
        rng: Random generator, for the attributes that stay and the order of the objects.
        keep: Probability that an attribute is described. None draws it from ``KEEP_LEVELS``.
    """
    level = KEEP_LEVELS[rng.integers(len(KEEP_LEVELS))] if keep is None else keep
    named = rng.random((len(scene.objects), len(ATTRIBUTES))) < level
    background = scene.background if rng.random() < level else None
    order = rng.permutation(len(scene.objects))
    while _word_count(named, background) > MAX_WORDS:
        rows, columns = np.nonzero(named)
        drop = rng.integers(len(rows))
        named[rows[drop], columns[drop]] = False
    objects = []
    for i in order:
        attributes = {a: getattr(scene.objects[i], a) if named[i, j] else None for j, a in enumerate(ATTRIBUTES)}
        objects.append(SceneObject(**attributes))
    return Scene(tuple(objects), background)


def perturb(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change a scene a little: other attributes, a removed, an added or a moved object, or often nothing.

    The number of edits is geometric (none in two of five cases), so that near misses are as frequent as failures.
    """
    objects = list(scene.objects)
    background = scene.background
    for _ in range(min(6, int(rng.geometric(0.4)) - 1)):
        i = int(rng.integers(len(objects)))
        other = sample_scene(rng, 1)
        kind = rng.random()
        if kind < 0.07:
            background = other.background
        elif kind < 0.25 and len(objects) > 1:
            del objects[i]
        elif kind < 0.42:
            objects.append(other.objects[0])
        elif kind < 0.57:
            objects[i] = replace(objects[i], row=other.objects[0].row, column=other.objects[0].column)
        else:
            attribute = ATTRIBUTES[int(rng.integers(4))]
            objects[i] = replace(objects[i], **{attribute: getattr(other.objects[0], attribute)})
    free = {(o.row, o.column): o for o in objects}  # two objects never share a place, so that the later one stays
    return Scene(tuple(free.values()), background)


def _word_count(named: np.ndarray, background: str | None) -> int:
    shape_column = ATTRIBUTES.index("shape")
    words = named.sum() + (~named[:, shape_column]).sum() + len(named) - 1
    return int(words) + (2 if background else 0)


def parse(caption: str) -> Scene:
    """Parse a caption.

    Args:
        caption: Caption in the words and the order of :meth:`Scene.caption`.

    Raises:
        ValueError: The caption has a word or an order that the grammar does not have.

    Example:
        >>> parse("small dotted blue ring lower right").objects[0].shape
        'ring'
    """
    body, _, background = caption.strip().partition(" on ")
    if background and background not in BACKGROUNDS:
        raise ValueError(f"The background '{background}' is unknown. It must be one of {', '.join(BACKGROUNDS)}.")
    return Scene(tuple(_parse_object(part) for part in body.split(" and ")), background or None)


_SLOTS: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "texture": TEXTURES,
    "color": tuple(COLORS),
    "shape": (*SHAPES, "object"),
    "row": ROWS,
    "column": COLUMNS,
}


def _parse_object(text: str) -> SceneObject:
    found: dict[str, str | None] = dict.fromkeys(ATTRIBUTES)
    for word in text.split():
        slot = next((name for name, words in _SLOTS.items() if word in words), None)
        if slot is None or found[slot] is not None:
            raise ValueError(f"The word '{word}' in '{text}' is unexpected. Words of tinyworld are {', '.join(WORDS)}.")
        found[slot] = word
    if found["shape"] is None:
        raise ValueError(f"'{text}' names no shape. Every object needs one. Write 'object' to leave it open.")
    if found["shape"] == "object":
        found["shape"] = None
    return SceneObject(**found)
