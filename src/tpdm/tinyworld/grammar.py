"""The scenes of tinyworld and the captions that describe them.

A scene is one to six objects on a 4 x 4 grid of places over a plain background. A caption names the objects one by
one and may leave any attribute open ("object and large circle top" does not say what the first object is): what a
caption leaves open the model has to decide, which is where denoising steps are needed.
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
KEEP_LEVELS = (1.0, 0.75, 0.45, 0.15)  # how much of a scene a caption tells; each level equally likely

WORDS = ("object", "and", "on", *SIZES, *TEXTURES, *COLORS, *SHAPES, *ROWS, *COLUMNS, *BACKGROUNDS)


@dataclass(frozen=True)
class SceneObject:
    """One object; ``None`` stands for "left open" when it describes a caption rather than a picture."""

    size: str | None
    texture: str | None
    color: str | None
    shape: str | None
    row: str | None
    column: str | None

    def words(self) -> list[str]:
        """The object as it is named in a caption, open attributes left out."""
        named = (self.size, self.texture, self.color, self.shape or "object", self.row, self.column)
        return [word for word in named if word is not None]

    def admits(self, seen: SceneObject) -> bool:
        """Whether ``seen`` (fully described) is an object that this description allows."""
        return all(getattr(self, a) in (None, getattr(seen, a)) for a in ATTRIBUTES)


@dataclass(frozen=True)
class Scene:
    """What is in a picture, or (with open attributes) what a caption asks for."""

    objects: tuple[SceneObject, ...]
    background: str | None

    def caption(self) -> str:
        """The text, for example ``large striped red circle top left and object on navy``."""
        parts = [" ".join(o.words()) for o in self.objects]
        tail = f" on {self.background}" if self.background else ""
        return " and ".join(parts) + tail


def sample_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """A scene with every attribute decided.

    Args:
        rng: source of randomness.
        count: number of objects, 1 to 16; drawn (1 to 6) from ``OBJECT_COUNT_WEIGHTS`` when not given.
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
    """A description of ``scene`` that leaves attributes open, short enough for the text encoders.

    Args:
        scene: a fully decided scene.
        rng: source of randomness (which attributes stay, and the order of the objects).
        keep: probability that an attribute is told; drawn from ``KEEP_LEVELS`` when not given.
    """
    level = KEEP_LEVELS[rng.integers(len(KEEP_LEVELS))] if keep is None else keep
    told = rng.random((len(scene.objects), len(ATTRIBUTES))) < level
    background = scene.background if rng.random() < level else None
    order = rng.permutation(len(scene.objects))
    while _word_count(told, background) > MAX_WORDS:
        rows, columns = np.nonzero(told)
        drop = rng.integers(len(rows))
        told[rows[drop], columns[drop]] = False
    objects = []
    for i in order:
        named = {a: getattr(scene.objects[i], a) if told[i, j] else None for j, a in enumerate(ATTRIBUTES)}
        objects.append(SceneObject(**named))
    return Scene(tuple(objects), background)


def perturb(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with a few things wrong: changed attributes, a lost, an added or a moved object; often none.

    The number of edits is geometric (none in two of five cases), so that near misses are as common as failures.
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
    free = {(o.row, o.column): o for o in objects}  # two objects never share a place: the later one stays
    return Scene(tuple(free.values()), background)


def _word_count(told: np.ndarray, background: str | None) -> int:
    shape_column = ATTRIBUTES.index("shape")
    words = told.sum() + (~told[:, shape_column]).sum() + len(told) - 1
    return int(words) + (2 if background else 0)


def parse(caption: str) -> Scene:
    """Reads a caption back into the description it was made from.

    Raises:
        ValueError: the caption has a word or an order that the grammar does not know.
    """
    body, _, background = caption.strip().partition(" on ")
    if background and background not in BACKGROUNDS:
        raise ValueError(f"unknown background '{background}'; expected one of {', '.join(BACKGROUNDS)}")
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
            raise ValueError(f"unexpected word '{word}' in '{text}'; tinyworld knows: {', '.join(WORDS)}")
        found[slot] = word
    if found["shape"] is None:
        raise ValueError(f"'{text}' names no shape; write 'object' to leave the shape open")
    if found["shape"] == "object":
        found["shape"] = None
    return SceneObject(**found)
