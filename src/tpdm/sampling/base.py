"""What every way of making a rollout's images shares: what is asked for, what comes of it, and the calls between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from tpdm.core.errors import NonFiniteError
from tpdm.core.types import Trajectory

logger = logging.getLogger(__name__)

if TYPE_CHECKING:  # training on another sampler loads no diffusers
    from tpdm.pipelines.attach import AdaptiveOutput
    from tpdm.sampling.prompt_embeddings import TextStore


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
    """Makes images from prompts; training and evaluation know no more of the backbone than this."""

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        decision_seeds: Sequence[int] | None = None,
        record: bool = False,
        negatives: Sequence[str] | None = None,
        gammas: Sequence[float] | None = None,
    ) -> SampleBatch:
        """One image per prompt and seed; ``decision_seeds`` samples the decisions, None takes the mode.

        ``negatives`` are negative prompts, one per image; None leaves the pipeline's own. ``gammas`` set the dial of
        each image; None where the policy has none.
        """


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


@dataclass(frozen=True)
class SampleRequest:
    """The images of one call of a ``Sampler``, whose arguments these are.

    Attributes:
        arguments: of every pipeline call; their ``negative_prompt``, if any, is that of images without one.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    decision_seeds: Sequence[int] | None
    record: bool
    negatives: Sequence[str] | None
    gammas: Sequence[float] | None
    arguments: Mapping[str, Any]

    def call(self, part: slice, texts: TextStore | None, device: torch.device | None) -> dict[str, Any]:
        """Arguments of an ``AdaptivePipeline`` for some of the images.

        Args:
            part: which of them.
            texts: embeddings made before; None lets the pipeline encode the prompts.
            device: of those embeddings; not needed without.
        """
        return {
            **self.arguments,
            **self._texts(part, texts, device),
            "seeds": list(self.seeds[part]),
            "decision_seeds": None if self.decision_seeds is None else list(self.decision_seeds[part]),
            "sample": self.decision_seeds is not None,
            "record": self.record,
            "gamma": None if self.gammas is None else list(self.gammas[part]),
            "output_type": "pt",
        }

    def _texts(self, part: slice, texts: TextStore | None, device: torch.device | None) -> dict[str, Any]:
        prompts = self.prompts[part]
        avoided: str | None = self.arguments.get("negative_prompt")
        negatives = [avoided] * len(prompts) if self.negatives is None else self.negatives[part]
        if texts is not None:
            assert device is not None
            return texts.call(list(zip(prompts, negatives, strict=True)), device)
        told = {} if None in negatives else {"negative_prompt": list(negatives)}
        return {"prompt": list(prompts), **told}


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
