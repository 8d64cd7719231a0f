"""Prompts of tinyworld: captions of fresh scenes, as many as one wants."""

from __future__ import annotations

from tpdm.tinyworld.data import generator
from tpdm.tinyworld.grammar import describe, sample_scene


def make_captions(count: int, seed: int = 0) -> list[str]:
    """``count`` different captions; the same seed gives the same ones, and a longer list begins with a shorter."""
    rng = generator(seed, "captions", 0)
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[describe(sample_scene(rng), rng).caption()] = None
    return list(captions)
