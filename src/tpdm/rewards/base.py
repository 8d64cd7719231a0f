"""The seam between training and whatever judges images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tpdm.core.errors import RewardError
from tpdm.data.truncation import Truncation


class Reward(Protocol):
    """Scores images against their prompts."""

    @property
    def name(self) -> str:
        """Shown in logs, reports and artifacts."""

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in fp32, higher is better, of RGB images (B, 3, H, W) in [0, 1]."""


@runtime_checkable
class ReadsTokens(Protocol):
    """A reward that reads so many tokens of a prompt and no more."""

    def over_long(self, prompts: Sequence[str]) -> list[Truncation]:
        """One entry for each text tower: how many of the prompts it does not read to their end."""


def checked_scores(
    reward: Reward, images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None = None
) -> Tensor:
    """``reward.score`` with its promise enforced; fp32 on the CPU, without gradient.

    Args:
        reward: scores.
        images_B3HW: RGB in [0, 1].
        prompts: one per image.
        seeds: that the images were made with, for the message where one cannot be scored.

    Raises:
        RewardError: a picture has values that are not finite; or the reward failed, or returned no tensor, the wrong
            number of scores, NaN or infinity. The message names the prompt; nothing is silently replaced.
    """
    _check_finite(images_B3HW, prompts, seeds)
    try:
        scores = reward.score(images_B3HW, prompts)
    except RewardError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RewardError(
            f"got a failure of reward '{reward.name}' on {quoted(prompts[0])}, the first of {len(prompts)} "
            f"prompts ({type(error).__name__}: {reason}), expected scores; mend the reward and start again"
        ) from error
    scores = one_each(scores, reward.name, prompts).detach().float().cpu()
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise RewardError(
            f"got {scores[row].item()} from reward '{reward.name}' for {quoted(prompts[row])}"
            f"{_seed(seeds, row)}, expected a finite score; try the reward on that image alone"
        )
    return scores


def _check_finite(images_B3HW: Tensor, prompts: Sequence[str], seeds: Sequence[int] | None) -> None:
    """Not every reward would say so: an 8-bit picture of NaN is black, and has a score."""
    finite = torch.isfinite(images_B3HW)
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise RewardError(
            f"got NaN or infinity in the picture of {quoted(prompts[row])}{_seed(seeds, row)}, expected values in "
            "[0, 1]; the decoder overflows: set backbone.dtype to bf16 or fp32"
        )


def _seed(seeds: Sequence[int] | None, row: int) -> str:
    return "" if seeds is None else f" with seed {seeds[row]}"


def one_each(scores: object, name: str, prompts: Sequence[str]) -> Tensor:
    """What a reward returned, if it is one score per image.

    Raises:
        RewardError: it is not.
    """
    if isinstance(scores, Tensor) and scores.shape == (len(prompts),):
        return scores
    got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    raise RewardError(
        f"got {got} from reward '{name}' for {len(prompts)} images from {quoted(prompts[0])} on, "
        f"expected a tensor of shape {(len(prompts),)}; return one score per image"
    )


def in_batches(
    score: Callable[[Tensor, Sequence[str]], Tensor], images_B3HW: Tensor, prompts: Sequence[str], size: int
) -> Tensor:
    """``score`` of ``size`` images at a time, so that memory does not grow with B: (B,) in fp32 on the CPU."""
    starts = range(0, len(prompts), size)
    parts = [score(images_B3HW[i : i + size], prompts[i : i + size]).float().cpu() for i in starts]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float32, device="cpu")


def quoted(prompt: str) -> str:
    """The prompt in quotes, on one line, at most 80 characters of it."""
    line = " ".join(prompt.split())
    return f"'{line}'" if len(line) <= 80 else f"'{line[:80]} ...'"
