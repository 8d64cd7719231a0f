"""The Reward protocol, and the checks that every reward's scores pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tpdm.core.errors import RewardError
from tpdm.data.truncation import Truncation


class Reward(Protocol):
    """Score images against their prompts.

    Training maximizes the score. Any object with ``name`` and ``score`` is a reward, without inheritance.

    Example:
        >>> import torch
        >>> from tpdm.rewards.base import checked_scores
        >>> class Brightness:
        ...     name = "brightness"
        ...
        ...     def score(self, images_B3HW, prompts):
        ...         return images_B3HW.mean(dim=(1, 2, 3))
        >>> checked_scores(Brightness(), torch.full((2, 3, 8, 8), 0.5), ["a red ring", "a blue square"])
        tensor([0.5000, 0.5000])
    """

    @property
    def name(self) -> str:
        """Name in logs, reports and artifacts."""

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch of images.

        Args:
            images_B3HW: RGB images (B, 3, H, W) in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Scores (B,) in fp32. A higher score is better.
        """


@runtime_checkable
class ReadsTokens(Protocol):
    """A reward whose text encoders read a limited number of tokens."""

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """Return one entry per text encoder, with the number of prompts that it truncates."""


def checked_scores(
    reward: Reward, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
) -> Tensor:
    """Score images and check the result.

    A NaN score would spoil the whole policy update. Therefore an invalid score stops the run.

    Args:
        reward: Reward that scores the images.
        images_B3HW: RGB images (B, 3, H, W) in [0, 1].
        prompts: B prompts, one per image.
        seeds: B seeds of the images. The error message contains the seed of an image that cannot be scored.

    Returns:
        Scores (B,) in fp32 on the CPU, without gradient.

    Raises:
        RewardError: If an image contains NaN or infinity, or if the reward fails or does not return one finite score
            per image. The message names the prompt.

    Example:
        >>> import torch
        >>> from tpdm.rewards.custom import FunctionReward
        >>> reward = FunctionReward("red", lambda images, prompts: images[:, 0].mean(dim=(1, 2)))
        >>> checked_scores(reward, torch.ones(1, 3, 8, 8), ["a red ring"], seeds=[7])
        tensor([1.])
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
            f"({type(error).__name__}: {reason}). It must return one score per image. Fix the reward and start again."
        ) from error
    scores = one_each(scores, reward.name, prompts).detach().float().cpu()
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise RewardError(
            f"Reward '{reward.name}' returned {scores[row].item()} for {quoted(prompts[row])}{_seed(seeds, row)}. "
            "Every score must be finite. Try the reward on that image only."
        )
    return scores


def _check_finite(images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None) -> None:
    """Raise if an image is not finite. A reward may not notice: an 8-bit image of NaN is black and has a score."""
    finite = torch.isfinite(images_B3HW)
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise RewardError(
            f"The image of {quoted(prompts[row])}{_seed(seeds, row)} contains NaN or infinity. Its values must be in "
            "[0, 1]. The decoder overflows: set backbone.dtype to bf16 or fp32."
        )


def _seed(seeds: Sequence[int] | None, row: int) -> str:
    return "" if seeds is None else f" with seed {seeds[row]}"


def one_each(scores: object, name: str, prompts: Sequence[str]) -> Tensor:
    """Return the scores if they are one per image.

    Args:
        scores: Result of a reward's function.
        name: Name of the reward, for the error message.
        prompts: B prompts, one per image.

    Returns:
        The same scores, of shape (B,).

    Raises:
        RewardError: If the result is not a tensor of shape (B,).
    """
    if isinstance(scores, Tensor) and scores.shape == (len(prompts),):
        return scores
    got = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
    raise RewardError(
        f"Reward '{name}' returned {got} for {len(prompts)} images, the first of which is {quoted(prompts[0])}. "
        f"It must return a tensor of shape {(len(prompts),)}. Return one score per image."
    )


def in_batches(
    score: Callable[[Tensor, Sequence[str]], Tensor], images_B3HW: Tensor, prompts: Sequence[str], size: int
) -> Tensor:
    """Score ``size`` images at a time, so that memory does not grow with B.

    Args:
        score: Function of images (b, 3, H, W) and b prompts that returns b scores.
        images_B3HW: RGB images (B, 3, H, W) in [0, 1].
        prompts: B prompts, one per image.
        size: Maximum number of images per call, >= 1.

    Returns:
        Scores (B,) in fp32 on the CPU.
    """
    starts = range(0, len(prompts), size)
    parts = [score(images_B3HW[i : i + size], prompts[i : i + size]).float().cpu() for i in starts]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float32, device="cpu")


def quoted(prompt: str) -> str:
    """Return the first 80 characters of a prompt in quotes, on one line.

    Example:
        >>> quoted("a red\\nring")
        "'a red ring'"
    """
    line = " ".join(prompt.split())
    return f"'{line}'" if len(line) <= 80 else f"'{line[:80]} ...'"
