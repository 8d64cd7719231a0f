"""Random streams: every purpose has a number of its own, and no two of them share a seed."""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What randomness is drawn for; stands behind the seed of a run.

    Results follow from these numbers: a new purpose gets a new number, and no number changes.

    Attributes:
        NOISE: initial noise of a training image: (update, prompt, sample).
        DECISION: its sampled decisions: (update, prompt, sample).
        VALIDATION: initial noise of a validation image: (image,).
        PROMPTS: order of the training prompts: (epoch,).
        WEIGHTS: initial weights of a TPM: ().
        TEST: initial noise of an evaluation. It is the same for every run, so that this number stands where the seed
            does: (TEST, 0, image) for the test, (TEST, 1, image) for tuning.
        GAMMAS: prices of the prompts of an update: (update,).
        CALIBRATION: noise and decisions of the images that an untrained TPM is shown: (image, 0 or 1). It was 4, the
            number of WEIGHTS.
    """

    NOISE = 0
    DECISION = 1
    VALIDATION = 2
    PROMPTS = 3
    WEIGHTS = 4
    TEST = 5
    GAMMAS = 6
    CALIBRATION = 7


# Numbers in a sequence, by the second one. 3 beside 5: those of TEST.
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
    """A 63-bit seed from non-negative integers: the same parts give the same seed everywhere, for ever.

    Other parts give another seed. numpy alone does not keep that: it pads up to four numbers with zeros, so that
    (3, 4) is (3, 4, 0, 0) to it, and cuts numbers of 2**32 and more into several. Of the sequences that are in use
    (``Stream``) no two are alike to numpy, since each second number has one length up to four; they go to numpy as
    they are, as they always did. Every other sequence goes there as the hash of its text.

    Args:
        parts: seed of a run, ``Stream``, and the place in it.

    Raises:
        ValueError: a part is negative.
    """
    return int(np.random.SeedSequence(_entropy(parts)).generate_state(1, np.uint64)[0]) >> 1


def stream_generator(*parts: int) -> np.random.Generator:
    """numpy's generator of a sequence; see ``derive_seed``."""
    return np.random.default_rng(np.random.SeedSequence(_entropy(parts)))


def _entropy(parts: tuple[int, ...]) -> list[int]:
    plain = [int(part) for part in parts]
    if any(part < 0 for part in plain):
        raise ValueError(f"got {plain}, expected no negative number in what a seed is made of")
    if len(plain) > 1 and len(plain) in _LENGTHS.get(plain[1], ()) and max(plain) < _WORD:
        return plain
    # The highest bit makes it nine words whatever the hash: no sequence in use is as long.
    digest = hashlib.sha256(json.dumps(plain).encode("ascii")).digest()
    return [int.from_bytes(b"\x01" + digest, "big")]
