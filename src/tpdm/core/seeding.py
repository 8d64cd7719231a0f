"""Random seeds: every purpose has its own number, so that no two purposes share a seed."""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purposes of random numbers. The number follows the seed of the run in a sequence for :func:`derive_seed`.

    Results depend on these numbers. A new purpose gets a new number, and no number changes.

    Attributes:
        NOISE: Initial noise of a training image, followed by (update, prompt, sample).
        DECISION: Sampled decisions of a training image, followed by (update, prompt, sample).
        VALIDATION: Initial noise of a validation image, followed by (image,).
        PROMPTS: Order of the training prompts, followed by (epoch,).
        WEIGHTS: Initial weights of a TPM, followed by ().
        TEST: Initial noise of an evaluation. It is the same for every run, so that this number is in place of the
            run's seed: (TEST, 0, image) for the test, (TEST, 1, image) for tuning.
        GAMMAS: Gammas of the prompts of an update, followed by (update,).
        CALIBRATION: Noise and decisions of the images that calibrate an untrained TPM, followed by (image, 0 or 1).
            It was 4, the number of WEIGHTS, before.
    """

    NOISE = 0
    DECISION = 1
    VALIDATION = 2
    PROMPTS = 3
    WEIGHTS = 4
    TEST = 5
    GAMMAS = 6
    CALIBRATION = 7


# Lengths of the sequences in use, by their second number. 3, in addition to 5, is for TEST.
_LENGTHS: dict[int, tuple[int, ...]] = {
    Stream.NOISE: (3, 5),
    Stream.DECISION: (3, 5),
    Stream.VALIDATION: (3,),
    Stream.PROMPTS: (3,),
    Stream.WEIGHTS: (2,),
    Stream.GAMMAS: (3,),
    Stream.CALIBRATION: (4,),
}
_WORD = 2**32


def derive_seed(*parts: int) -> int:
    """Derive a 63-bit seed from non-negative integers.

    The same parts give the same seed on every machine. Other parts give another seed. numpy alone does not ensure
    that: it pads up to four numbers with zeros, so that (3, 4) equals (3, 4, 0, 0), and splits numbers of 2**32 and
    more. The sequences in use (:class:`Stream`) are passed to numpy unchanged, because none of them collide. All other
    sequences are hashed first.

    Args:
        parts: Seed of the run, a :class:`Stream`, and the position in it. All must be >= 0.

    Raises:
        ValueError: A part is negative.

    Example:
        >>> derive_seed(0, Stream.NOISE, 3, 1, 0) == derive_seed(0, Stream.NOISE, 3, 1, 0)
        True
        >>> derive_seed(3, 4) == derive_seed(3, 4, 0, 0)
        False
    """
    return int(np.random.SeedSequence(_entropy(parts)).generate_state(1, np.uint64)[0]) >> 1


def stream_generator(*parts: int) -> np.random.Generator:
    """Create numpy's generator for a sequence. See :func:`derive_seed` for the arguments.

    Example:
        >>> int(stream_generator(0, Stream.PROMPTS, 1).integers(10)) in range(10)
        True
    """
    return np.random.default_rng(np.random.SeedSequence(_entropy(parts)))


def _entropy(parts: tuple[int, ...]) -> list[int]:
    plain = [int(part) for part in parts]
    if any(part < 0 for part in plain):
        raise ValueError(f"The parts of a seed are {plain}. They must not be negative. Pass the seed modulo 2**63.")
    if len(plain) > 1 and len(plain) in _LENGTHS.get(plain[1], ()) and max(plain) < _WORD:
        return plain
    # The highest bit makes nine words of every hash. No sequence in use is that long.
    digest = hashlib.sha256(json.dumps(plain).encode("ascii")).digest()
    return [int.from_bytes(b"\x01" + digest, "big")]
