"""Rollouts without a tail: finished images leave, new prompts enter, so that the denoiser's calls stay full."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tpdm.portion import Portion
from tpdm.rollout_images import Album, Asked, Generated, naming
from tpdm.types import BackboneError, TpdmError

if TYPE_CHECKING:  # training on another sampler loads no diffusers
    from tpdm.pipelines.attach import AdaptivePipeline
    from tpdm.pipelines.continuous import ContinuousRun
    from tpdm.pipelines.texts import TextStore


@dataclass(frozen=True)
class ContinuousSampler:
    """A ``Sampler`` on an attached pipeline, one run per image (``pipelines.continuous``).

    All images of a call go through the same places: those of an update, whatever their prompt. They enter in their
    order, so the same call gives the same bits. The images are those of ``PipelineSampler``: bit by bit where calls
    have as many rows (``places`` and ``batch`` of 1), else to the rounding of calls with another number of rows. A
    static batch makes E[max N over the batch] calls for its images, this about E[N]; what that is worth depends on
    how the time of a call grows with its rows (docs/serving.md). Images are encoded and decoded one at a time.

    Attributes:
        pipeline: made by ``attach``.
        places: images in flight at once, fewer where memory is short; memory and speed only, never the result.
        arguments: of the pipeline call (guidance_scale, height ...).
        texts: embeddings made before, of all prompts that will come; None lets the pipeline encode them.
    """

    pipeline: AdaptivePipeline
    places: int
    arguments: dict[str, Any]
    texts: TextStore | None = None
    _portion: Portion = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_portion", Portion(self.places, "rl.rollout_batch", "images"))

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        decision_seeds: Sequence[int] | None = None,
        record: bool = False,
        negatives: Sequence[str] | None = None,
        gammas: Sequence[float] | None = None,
    ) -> Generated:
        """See ``Sampler``."""
        asked = Asked(prompts, seeds, decision_seeds, record, negatives, gammas, self.arguments)
        album = Album(len(prompts))
        while album.missing:
            if not self._try(asked, album):
                self._portion.halve(min(len(album.missing), self._portion.size))
        return album.generated(record)

    def _try(self, asked: Asked, album: Album) -> bool:
        """Makes what the album lacks.

        Returns:
            False where memory did not hold so many images at once; the others are made, and nothing more is held.
        """
        from tpdm.pipelines.continuous import ContinuousPipeline

        device = None if self.texts is None else self.pipeline.pipe._execution_device

        def make(row: int, run: ContinuousRun) -> None:
            part = slice(row, row + 1)
            with naming(asked.prompts[part], asked.seeds[part]):
                album.put(part, run(self.pipeline, **asked.call(part, self.texts, device)))

        places = self._portion.size
        shared = ContinuousPipeline(self.pipeline.pipe, places, in_order=True)
        # All have their place in the order before the first one asks for it.
        runs = [(row, shared.run()) for row in album.missing]
        # As many again, whose texts are encoded while the others run, or that are decoded.
        pool = ThreadPoolExecutor(2 * places, thread_name_prefix="tpdm-rollout")
        try:
            for future in as_completed([pool.submit(make, *run) for run in runs]):
                future.result()
        except (torch.OutOfMemoryError, BackboneError) as error:
            if not any(isinstance(one, torch.OutOfMemoryError) for one in (error, error.__cause__)):
                raise
            return False
        finally:
            # After an error, or an interruption, the others end at their next step.
            shared.close(TpdmError("got an end of the rollout before this image was done, expected none."))
            pool.shutdown(cancel_futures=True)
        return True
