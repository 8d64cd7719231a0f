"""Prompts of tinyworld: captions of fresh scenes, as many as one wants."""

from __future__ import annotations

from tpdm.tinyworld.data import generator
from tpdm.tinyworld.grammar import describe, sample_scene

# How much of its scene a prompt tells. People mix the precise and the vague: three in four tell all that fits.
PROMPT_LEVELS = (*(1.0,) * 6, 0.45, 0.15)


def make_captions(count: int, seed: int = 0) -> list[str]:
    """``count`` different captions; the same seed gives the same ones, and a longer list begins with a shorter."""
    rng = generator(seed, "captions", 0)
    captions: dict[str, None] = {}
    while len(captions) < count:
        level = PROMPT_LEVELS[rng.integers(len(PROMPT_LEVELS))]
        captions[describe(sample_scene(rng), rng, level).caption()] = None
    return list(captions)
