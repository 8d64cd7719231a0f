"""Rollout (images with their recorded decisions) and replay (those decisions as one flat batch)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tpdm.config.recipe import Recipe
from tpdm.core.errors import BackboneError, TpdmError
from tpdm.sampling.base import SampleBatch, SampleCollector, Sampler, SampleRequest, annotate_numeric_errors
from tpdm.sampling.batch_size import AdaptiveBatchSize

if TYPE_CHECKING:
    from tpdm.pipelines.attach import AdaptiveOutput, AdaptivePipeline
    from tpdm.sampling.batching.pipeline import BatchedRun
    from tpdm.sampling.prompt_embeddings import TextStore


def pipeline_call(
    request: SampleRequest, pipeline: AdaptivePipeline, arguments: Mapping[str, Any], texts: TextStore | None
) -> dict[str, Any]:
    """Arguments of an ``AdaptivePipeline`` for a request.

    Args:
        request: The images of the call.
        pipeline: The attached pipeline.
        arguments: Arguments of every call. Their ``negative_prompt``, if any, is that of images without one.
        texts: Precomputed prompt embeddings. None lets the pipeline encode the prompts.
    """
    default: str | None = arguments.get("negative_prompt")
    negatives = [default] * len(request) if request.negatives is None else request.negatives
    if texts is not None:
        encoded = texts.call(list(zip(request.prompts, negatives, strict=True)), pipeline.pipe._execution_device)
    else:
        encoded = {"prompt": list(request.prompts)}
        if None not in negatives:
            encoded["negative_prompt"] = list(negatives)
    return {
        **arguments,
        **encoded,
        "seeds": list(request.seeds),
        "decision_seeds": None if request.decision_seeds is None else list(request.decision_seeds),
        "sample": request.decision_seeds is not None,
        "record": request.record,
        "gamma": None if request.gammas is None else list(request.gammas),
        "output_type": "pt",
    }


@dataclass(frozen=True)
class PipelineSampler:
    """A ``Sampler`` on an attached pipeline.

    Attributes:
        pipeline: made by ``attach``.
        batch: images in flight at once, fewer where memory is short; memory and speed only, never the result.
        arguments: of the pipeline call (guidance_scale, height ...).
        texts: embeddings made before, of all prompts that will come; None lets the pipeline encode them.
        decode_batch: images decoded at once; None decodes the batch.
    """

    pipeline: AdaptivePipeline
    batch: int
    arguments: dict[str, Any]
    texts: TextStore | None = None
    decode_batch: int | None = None
    _portion: AdaptiveBatchSize = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_portion", AdaptiveBatchSize(self.batch, "rl.rollout_batch", "images"))

    def __call__(self, request: SampleRequest) -> SampleBatch:
        """See ``Sampler``."""
        album, done = SampleCollector(len(request)), 0
        while done < len(request):
            part = slice(done, done + self._portion.size)
            output = self._try(request.rows(part))
            if output is None:
                self._portion.halve(len(request.rows(part)))
                continue
            album.put(part, output)
            done += len(output.steps)
        return album.generated(request.record)

    @property
    def in_flight(self) -> int:
        """Images in flight from now on: ``batch``, or what memory turned out to hold."""
        return self._portion.size

    def _decoding(self) -> AbstractContextManager[None]:
        if self.decode_batch is None:
            return nullcontext()
        from tpdm.pipelines.vae import decoding_in_slices

        return decoding_in_slices(self.pipeline.pipe, self.decode_batch)

    def _try(self, request: SampleRequest) -> AdaptiveOutput | None:
        """One call of the pipeline. None: memory is short, and everything of the attempt is freed."""
        call = pipeline_call(request, self.pipeline, self.arguments, self.texts)
        try:
            with annotate_numeric_errors(request.prompts, request.seeds), self._decoding():
                return self.pipeline(**call)
        except torch.OutOfMemoryError:
            return None


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
    _portion: AdaptiveBatchSize = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_portion", AdaptiveBatchSize(self.places, "rl.rollout_batch", "images"))

    def __call__(self, request: SampleRequest) -> SampleBatch:
        """See ``Sampler``."""
        album = SampleCollector(len(request))
        while album.missing:
            if not self._try(request, album):
                self._portion.halve(min(len(album.missing), self._portion.size))
        return album.generated(request.record)

    def _try(self, request: SampleRequest, album: SampleCollector) -> bool:
        """Makes what the album lacks.

        Returns:
            False where memory did not hold so many images at once; the others are made, and nothing more is held.
        """
        from tpdm.sampling.batching.pipeline import BatchedPipeline

        def make(row: int, run: BatchedRun) -> None:
            part = slice(row, row + 1)
            one = request.rows(part)
            with annotate_numeric_errors(one.prompts, one.seeds):
                album.put(part, run(self.pipeline, **pipeline_call(one, self.pipeline, self.arguments, self.texts)))

        places = self._portion.size
        shared = BatchedPipeline(self.pipeline.pipe, places, in_order=True)
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


def choose_sampler(
    recipe: Recipe, pipeline: AdaptivePipeline, arguments: dict[str, Any], texts: TextStore | None
) -> Sampler:
    """The sampler that ``rl.rollout`` names.

    Args:
        recipe: of the run.
        pipeline: made by ``attach``.
        arguments: of every pipeline call.
        texts: embeddings of all prompts of the run; None lets the pipeline encode them.
    """
    if recipe.rl.rollout == "continuous":
        return ContinuousSampler(pipeline, recipe.rl.rollout_batch, arguments, texts)
    return PipelineSampler(pipeline, recipe.rl.rollout_batch, arguments, texts, recipe.backbone.decode_batch)
