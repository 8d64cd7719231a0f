"""What every way of making a rollout's images shares: what is asked for, what comes of it, and the calls between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from tpdm.core.errors import NonFiniteError
from tpdm.core.types import Trajectory
from tpdm.data.prompts import Prompt

logger = logging.getLogger(__name__)

if TYPE_CHECKING:  # training on another sampler loads no diffusers
    from tpdm.pipelines.attach import AdaptiveOutput


@dataclass(frozen=True)
class SampleRequest:
    """The images that one call of a ``Sampler`` makes.

    Attributes:
        prompts: One text per image.
        seeds: One integer per image, for the initial noise.
        decision_seeds: One integer per image samples the decisions. None (the default) takes the policy's mode.
        record: Whether ``SampleBatch.trajectories`` is filled. Default: False.
        negatives: One negative prompt per image. None (the default) keeps that of the pipeline.
        gammas: One gamma per image for a gamma-conditioned policy. None is the default.

    Example:
        >>> request = SampleRequest(["a cat", "a dog", "an owl"], seeds=[0, 1, 2], gammas=[0.95, 0.97, 0.99])
        >>> request.rows(slice(1, None)).gammas
        [0.97, 0.99]
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    decision_seeds: Sequence[int] | None = None
    record: bool = False
    negatives: Sequence[str] | None = None
    gammas: Sequence[float] | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        decision_seeds: Sequence[int] | None = None,
        record: bool = False,
        gammas: Sequence[float] | None = None,
        *,
        with_negatives: bool,
    ) -> SampleRequest:
        """A request for prompts of a source.

        Args:
            prompts: One per image.
            seeds, decision_seeds, record, gammas: See ``SampleRequest``.
            with_negatives: Whether any prompt of the run has a negative prompt. Then an image without one gets the
                empty text. This is a property of the run: for some pipelines an empty negative prompt differs from
                none, and an image must not depend on the other images of its request.
        """
        negatives = [prompt.negative or "" for prompt in prompts] if with_negatives else None
        return cls([prompt.text for prompt in prompts], seeds, decision_seeds, record, negatives, gammas)

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, rows: slice) -> SampleRequest:
        """The request for some of the images."""
        return SampleRequest(
            self.prompts[rows],
            self.seeds[rows],
            None if self.decision_seeds is None else self.decision_seeds[rows],
            self.record,
            None if self.negatives is None else self.negatives[rows],
            None if self.gammas is None else self.gammas[rows],
        )


@dataclass(frozen=True)
class SampleBatch:
    """Finished images in the order they were asked for.

    Attributes:
        images_B3HW: RGB in [0, 1], fp32, on the CPU (a test may put anything with B rows here).
        steps: network evaluations of each image.
        times: from the start down to 0.0, one more than steps.
        trajectories: what replay needs; None unless recorded.
    """

    images_B3HW: Tensor
    steps: list[int]
    times: list[list[float]]
    trajectories: list[Trajectory] | None


class Sampler(Protocol):
    """Makes images from prompts. Training and evaluation use a backbone only through this."""

    def __call__(self, request: SampleRequest, /) -> SampleBatch:
        """One image per row of the request, in its order."""


@contextmanager
def annotate_numeric_errors(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[None]:
    """An error that one image is to blame for says what to make it again from.

    Args:
        prompts: of the images that the error counts.
        seeds: of their noise.
    """
    try:
        yield
    except NonFiniteError as error:
        raise error.with_prompt(prompts[error.image], seeds[error.image]) from error


class SampleCollector:
    """Collects finished images, in any order and from any thread.

    Args:
        count: of the images.
    """

    def __init__(self, count: int) -> None:
        self._mutex = threading.Lock()
        self._images_B3HW: Tensor | None = None
        self._steps: list[int] = [0] * count
        self._times: list[list[float]] = [[]] * count
        self._trajectories: list[Trajectory | None] = [None] * count

    @property
    def missing(self) -> list[int]:
        """Rows that are not there yet, ascending."""
        return [row for row, steps in enumerate(self._steps) if steps == 0]

    def put(self, part: slice, output: AdaptiveOutput) -> None:
        """Keeps what a pipeline call made of the rows ``part``."""
        flagged = sum(output.nsfw_content_detected or ())
        if flagged:
            logger.warning(
                "the pipeline's safety checker flagged %d of %d images and made them black: their scores are those of "
                "black images; set its safety_checker to None for training and evaluation",
                flagged,
                len(output.steps),
            )
        absent: list[Trajectory | None] = [None] * len(output.steps)
        with self._mutex:
            if self._images_B3HW is None:
                # All at once: a list of parts, joined at the end, would take twice the memory.
                size = (len(self._steps), *output.images.shape[1:])
                self._images_B3HW = torch.empty(size, dtype=torch.float32, device="cpu")
            self._images_B3HW[part] = output.images.float().cpu()
            self._times[part] = output.times
            self._trajectories[part] = absent if output.trajectories is None else [*output.trajectories]
            self._steps[part] = output.steps

    def generated(self, record: bool) -> SampleBatch:
        """All of it; every image has been put in."""
        assert self._images_B3HW is not None
        trajectories = [one for one in self._trajectories if one is not None] if record else None
        return SampleBatch(self._images_B3HW, self._steps, self._times, trajectories)
