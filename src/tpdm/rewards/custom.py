"""A function of your own as a reward: ``python:package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    module, colon, attribute = place.partition(":")
    name = f"python:{place}"
    if not (module and colon and attribute):
        raise RewardError(f"got reward '{name}', expected python:package.module:function; correct reward.name")
    # At the end, so that a file here hides no installed module; a console script does not search the current folder.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.invalidate_caches()
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RewardError(
            f"got reward '{name}', which cannot be imported ({type(error).__name__}: {reason}), expected a function in "
            "an importable module; mend it, or run from the folder that holds it"
        ) from error
    if not callable(function):
        raise RewardError(f"got reward '{name}', a {type(function).__name__}, expected a function; correct reward.name")
    return FunctionReward(name, function, device, batch)
