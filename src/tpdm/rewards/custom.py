"""A function of your own as a reward: ``python:package.module:function``."""

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
    """Wraps a function.

    Attributes:
        name: for logs.
        function: images (B, 3, H, W) in [0, 1], fp32, and B prompts -> tensor (B,), higher is better.
        device: where it gets the images, without gradient.
        batch: images of a call at most; memory only, where a score does not depend on the other images.
    """

    name: str
    function: Score
    device: str = "cpu"
    batch: int = 64

    @torch.no_grad()
    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the function returns, call by call; ``checked_scores`` asks whether those are scores.

        Raises:
            RewardError: a call does not return one score per image.
        """

        def call(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
            # A copy: a function may normalize in place, and others look at the same pictures.
            scores = self.function(images_B3HW.to(self.device, torch.float32, copy=True), list(prompts))
            return one_each(scores, self.name, prompts)

        return in_batches(call, images_B3HW, prompts, self.batch)


def load_function(place: str, device: str = "cpu", batch: int = 64) -> FunctionReward:
    """The function at ``package.module:function``, looked for in the current folder too.

    Importing runs the module: give only code that you trust.

    Raises:
        RewardError: there is no such module or function, or importing it fails.
    """
    try:
        function = import_function(place)
    except ValueError as error:
        raise RewardError(
            f"reward.name is python:{place}, which {error}. It must be python:package.module:function. Correct it, or "
            "run from the folder that holds the module."
        ) from error
    return FunctionReward(f"python:{place}", function, device, batch)
