"""The ``Sampler`` protocol, its request and its result."""

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
    """The images of a request, in its order.

    Attributes:
        images_B3HW: RGB images in [0, 1], fp32, on the CPU. Tests may use any tensor with B rows.
        steps: Denoiser evaluations of each image.
        times: Times of each image from the start to 0.0, one more than steps.
        trajectories: Recorded decisions of each image. None unless the request has ``record``.
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
    """Adds the prompt and the seed of the image to a ``NonFiniteError`` inside the block.

    Args:
        prompts: Prompt of each image that the error may name.
        seeds: Noise seed of each image.
    """
    try:
        yield
    except NonFiniteError as error:
        raise error.with_prompt(prompts[error.image], seeds[error.image]) from error


class SampleCollector:
    """Collects finished images in any order and from any thread.

    Args:
        count: Number of images, >= 1.
    """

    def __init__(self, count: int) -> None:
        self._mutex = threading.Lock()
        self._images_B3HW: Tensor | None = None
        self._steps: list[int] = [0] * count
        self._times: list[list[float]] = [[]] * count
        self._trajectories: list[Trajectory | None] = [None] * count

    @property
    def missing(self) -> list[int]:
        """Rows of images that are not finished, ascending."""
        return [row for row, steps in enumerate(self._steps) if steps == 0]

    def put(self, part: slice, output: AdaptiveOutput) -> None:
        """Adds the images of one pipeline call.

        Args:
            part: Their rows.
            output: Result of the call.
        """
        flagged = sum(output.nsfw_content_detected or ())
        if flagged:
            logger.warning(
                "The pipeline's safety checker flagged %d of %d images and made them black. They are scored as black "
                "images. Set its safety_checker to None for training and evaluation.",
                flagged,
                len(output.steps),
            )
        absent: list[Trajectory | None] = [None] * len(output.steps)
        with self._mutex:
            if self._images_B3HW is None:
                # Allocated once, because joining a list of parts would take twice the memory.
                size = (len(self._steps), *output.images.shape[1:])
                self._images_B3HW = torch.empty(size, dtype=torch.float32, device="cpu")
            self._images_B3HW[part] = output.images.float().cpu()
            self._times[part] = output.times
            self._trajectories[part] = absent if output.trajectories is None else [*output.trajectories]
            self._steps[part] = output.steps

    def batch(self, record: bool) -> SampleBatch:
        """The result, after all images were added.

        Args:
            record: Whether it contains trajectories.
        """
        assert self._images_B3HW is not None
        trajectories = [t for t in self._trajectories if t is not None] if record else None
        return SampleBatch(self._images_B3HW, self._steps, self._times, trajectories)
