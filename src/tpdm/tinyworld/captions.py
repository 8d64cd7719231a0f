"""Prompts of tinyworld: captions of random scenes, in any number."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from tpdm.tinyworld.grammar import Scene, describe, sample_scene
from tpdm.tinyworld.render import render

# Share of its scene that a prompt describes. Three in four prompts describe all that fits.
PROMPT_LEVELS = (*(1.0,) * 6, 0.45, 0.15)


def make_captions(count: int, seed: int = 0) -> list[str]:
    """Generate different captions. A longer list starts with a shorter one.

    Args:
        count: Number of captions, >= 0.
        seed: Seed of the captions, >= 0.

    Example:
        >>> make_captions(3)[:2] == make_captions(2)
        True
    """
    rng = generator(seed, "captions", 0)
    captions: dict[str, None] = {}
    while len(captions) < count:
        level = PROMPT_LEVELS[rng.integers(len(PROMPT_LEVELS))]
        captions[describe(sample_scene(rng), rng, level).caption()] = None
    return list(captions)


def generator(seed: int, name: str, step: int) -> np.random.Generator:
    """Create a generator from these three values only, so that resuming needs no saved state."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), step])


def scene_batch(rng: np.random.Generator, size: int, count: int | None = None) -> tuple[list[Scene], Tensor]:
    """Draw random scenes and render them.

    Args:
        rng: Random generator.
        size: Number of scenes B.
        count: Number of objects of each scene. None draws it.

    Returns:
        (scenes, images (B, 3, 64, 64) in [-1, 1]).
    """
    scenes = [sample_scene(rng, count) for _ in range(size)]
    return scenes, to_unit_range(np.stack([render(s) for s in scenes]))


def to_unit_range(images_BHWC: np.ndarray) -> Tensor:
    """Convert uint8 images (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
