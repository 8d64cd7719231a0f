"""Custom rewards: a Python function as a reward, named ``python:package.module:function``."""

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
    """A reward that calls a function.

    Attributes:
        name: Name in logs and reports.
        function: Function of fp32 images (b, 3, H, W) in [0, 1] and a list of b prompts. It returns a tensor (b,) of
            scores. A higher score is better. The score of an image must not depend on the other images.
        device: Device of the images that the function receives. They have no gradient.
        batch: Maximum number of images per call, >= 1. It limits memory.

    Example:
        >>> import torch
        >>> contrast = FunctionReward("contrast", lambda images, prompts: images.std(dim=(1, 2, 3)))
        >>> contrast.score(torch.zeros(2, 3, 8, 8), ["a red ring", "a blue square"])
        tensor([0., 0.])
    """

    name: str
    function: Score
    device: str = "cpu"
    batch: int = 64

    @torch.no_grad()
    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch of images.

        Args:
            images_B3HW: RGB images (B, 3, H, W) in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Scores (B,) in fp32 on the CPU. ``checked_scores`` checks that they are finite.

        Raises:
            RewardError: If a call does not return one score per image.
        """

        def call(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
            # A copy: the function may normalize in place, and other rewards score the same images.
            scores = self.function(images_B3HW.to(self.device, torch.float32, copy=True), list(prompts))
            return one_each(scores, self.name, prompts)

        return in_batches(call, images_B3HW, prompts, self.batch)


def load_function(place: str, device: str = "cpu", batch: int = 64) -> FunctionReward:
    """Import a function as a reward.

    The import runs the module. Load only code that you trust. The current folder is searched too, after the installed
    packages.

    Args:
        place: ``package.module:function``.
        device: Device of the images that the function receives.
        batch: Maximum number of images per call, >= 1.

    Raises:
        RewardError: If the module or the function does not exist, or if the import fails.

    Example:
        >>> load_function("statistics:mean").name
        'python:statistics:mean'
    """
    try:
        function = import_function(place)
    except ValueError as error:
        raise RewardError(
            f"reward.name is python:{place}, which {error}. It must be python:package.module:function. Correct it, or "
            "run in the folder that contains the module."
        ) from error
    return FunctionReward(f"python:{place}", function, device, batch)
