"""Endless labelled scenes, each batch drawn from a generator seeded by (seed, name, step)."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from tpdm.tinyworld.grammar import Scene, sample_scene
from tpdm.tinyworld.render import render


def generator(seed: int, name: str, step: int) -> np.random.Generator:
    """A generator that depends on these three alone, so that resuming needs no saved state."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), step])


def scene_batch(rng: np.random.Generator, size: int, count: int | None = None) -> tuple[list[Scene], Tensor]:
    """``size`` scenes (of ``count`` objects, where given) and their pictures, (B, 3, 64, 64) in [-1, 1]."""
    scenes = [sample_scene(rng, count) for _ in range(size)]
    return scenes, to_unit_range(np.stack([render(s) for s in scenes]))


def to_unit_range(images_BHWC: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
