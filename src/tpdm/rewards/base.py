"""The protocol of rewards, and checks of what they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tpdm.core.errors import RewardError
from tpdm.data.truncation import Truncation


class Reward(Protocol):
    """Anything that scores images against their prompts.

    Example:
        >>> class Red:
        ...     name = "red"
        ...
        ...     def score(self, images_B3HW, prompts):
        ...         return images_B3HW[:, 0].mean((1, 2))
        >>> checked_scores(Red(), torch.ones(2, 3, 8, 8), ["a", "b"])
        tensor([1., 1.])
    """

    @property
    def name(self) -> str:
        """Name in logs, reports and artifacts."""

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images.

        Args:
            images_B3HW: RGB images in [0, 1].
            prompts: One prompt per image.

        Returns:
            Scores (B,) in fp32. Higher is better.
        """


@runtime_checkable
class ReadsTokens(Protocol):
    """A reward whose text encoder truncates long prompts."""

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """Return one entry per text encoder: how many of the prompts it truncates."""


def checked_scores(
    reward: Reward, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
) -> Tensor:
    """Call ``reward.score`` and check what it returns.

    Args:
        reward: Reward to call.
        images_B3HW: RGB images in [0, 1].
        prompts: One prompt per image.
        seeds: Seeds of the images, for error messages. Default: none.

    Returns:
        Scores (B,) in fp32 on the CPU, without gradient.

    Raises:
        RewardError: If an image has values that are not finite, if the reward fails, or if it does not return one
            finite score per image. The message names the prompt.
    """
    _check_finite(images_B3HW, prompts, seeds)
    try:
        scores = reward.score(images_B3HW, prompts)
    except RewardError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RewardError(
            f"Reward '{reward.name}' failed on {quoted(prompts[0])}, the first of {len(prompts)} prompts "
            f"({type(error).__name__}: {reason}). It must return scores. Fix the reward and start again."
        ) from error
    scores = one_each(scores, reward.name, prompts).detach().float().cpu()
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise RewardError(
            f"Reward '{reward.name}' returned {scores[row].item()} for {quoted(prompts[row])}{_seed(seeds, row)}. "
            "Scores must be finite. Try the reward on that image alone."
        )
    return scores


def _check_finite(images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None) -> None:
    """Raise if an image is not finite. Some rewards would score it: NaN becomes black in 8 bits."""
    finite = torch.isfinite(images_B3HW)
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise RewardError(
            f"The image of {quoted(prompts[row])}{_seed(seeds, row)} contains NaN or infinity. Values must be in "
            "[0, 1]. The decoder overflows: set backbone.dtype to bf16 or fp32."
        )


def _seed(seeds: Sequence[int] | None, row: int) -> str:
    return "" if seeds is None else f" with seed {seeds[row]}"


def one_each(scores: object, name: str, prompts: Sequence[str]) -> Tensor:
    """Return ``scores`` if they are one score per image.

    Raises:
        RewardError: If they are not a tensor of shape (B,).
    """
    if isinstance(scores, Tensor) and scores.shape == (len(prompts),):
        return scores
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    raise RewardError(
        f"Reward '{name}' returned {shape} for {len(prompts)} images from {quoted(prompts[0])} on. It must return a "
        f"tensor of shape {(len(prompts),)}. Return one score per image."
    )


def in_batches(
    score: Callable[[Tensor, Sequence[str]], Tensor], images_B3HW: Tensor, prompts: Sequence[str], size: int
) -> Tensor:
    """Score ``size`` images at a time, so that memory does not grow with B. Returns (B,) in fp32 on the CPU."""
    starts = range(0, len(prompts), size)
    parts = [score(images_B3HW[i : i + size], prompts[i : i + size]).float().cpu() for i in starts]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float32, device="cpu")


def quoted(prompt: str) -> str:
    """Return the prompt in quotes on one line, cut to 80 characters."""
    line = " ".join(prompt.split())
    return f"'{line}'" if len(line) <= 80 else f"'{line[:80]} ...'"
