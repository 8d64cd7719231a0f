"""Judges that know nothing of the reward."""

from collections.abc import Sequence

from torch import Tensor


def brightness(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
    return images_B3HW.mean((1, 2, 3))
