"""Rewards from your own functions: ``python:package.module:function``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdm.core.builtins import import_function
from tpdm.core.errors import RewardError
from tpdm.rewards.base import in_batches, one_each

Score = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class FunctionReward:
    """A function as a reward.

    Attributes:
        name: Name in logs.
        function: Takes fp32 images (B, 3, H, W) in [0, 1] and B prompts. Returns a tensor (B,), higher is better.
        device: Device of the images. Default: the CPU.
        batch: Maximum number of images per call. It affects memory only, if scores do not depend on other images.

    Example:
        >>> brightness = FunctionReward("brightness", lambda images, prompts: images.mean((1, 2, 3)))
        >>> brightness.score(torch.ones(2, 3, 8, 8), ["a", "b"])
        tensor([1., 1.])
    """

    name: str
    function: Score
    device: str = "cpu"
    batch: int = 64

    @torch.no_grad()
    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score the images batch by batch, without gradient.

        Raises:
            RewardError: If a call does not return one score per image.
        """

        def call(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
            # A copy, because a function may normalize in place.
            scores = self.function(images_B3HW.to(self.device, torch.float32, copy=True), list(prompts))
            return one_each(scores, self.name, prompts)

        return in_batches(call, images_B3HW, prompts, self.batch)


def load_function(place: str, device: str = "cpu", batch: int = 64) -> FunctionReward:
    """Import ``package.module:function``, also from the current folder.

    Importing runs the module, so use only code that you trust.

    Args:
        place: Module and function, separated by a colon.
        device: Device of the images.
        batch: Maximum number of images per call.

    Raises:
        RewardError: If there is no such module or function, or if the import fails.

    Example:
        >>> load_function("math:sqrt").name
        'python:math:sqrt'
    """
    try:
        function = import_function(place)
    except ValueError as error:
        raise RewardError(
            f"reward.name is python:{place}, which {error}. It must be python:package.module:function. Correct it, or "
            "run from the folder that holds the module."
        ) from error
    return FunctionReward(f"python:{place}", function, device, batch)
