"""Samplers on an attached pipeline: static batches, or continuous batching."""

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
    from tpdm.sampling.prompt_embeddings import EmbeddingStore


def pipeline_call(
    request: SampleRequest,
    pipeline: AdaptivePipeline,
    arguments: Mapping[str, Any],
    embeddings: EmbeddingStore | None,
) -> dict[str, Any]:
    """Arguments of an ``AdaptivePipeline`` for a request.

    Args:
        request: The images of the call.
        pipeline: The attached pipeline.
        arguments: Arguments of every call. Their ``negative_prompt``, if any, is that of images without one.
        embeddings: Precomputed prompt embeddings. None lets the pipeline encode the prompts.
    """
    default: str | None = arguments.get("negative_prompt")
    negatives = [default] * len(request) if request.negatives is None else request.negatives
    if embeddings is not None:
        encoded = embeddings.call(list(zip(request.prompts, negatives, strict=True)), pipeline.pipe._execution_device)
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
        pipeline: The attached pipeline.
        batch: Images per call, >= 1, halved if memory is short. It changes memory and speed, and the result only up to
            floating-point rounding.
        arguments: Arguments of every call (guidance_scale, height ...).
        embeddings: Precomputed prompt embeddings. None (the default) lets the pipeline encode the prompts.
        decode_batch: Images decoded at once. None (the default) decodes the whole batch.
    """

    pipeline: AdaptivePipeline
    batch: int
    arguments: dict[str, Any]
    embeddings: EmbeddingStore | None = None
    decode_batch: int | None = None
    _batch_size: AdaptiveBatchSize = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_batch_size", AdaptiveBatchSize(self.batch, "rl.rollout_batch", "images"))

    def __call__(self, request: SampleRequest) -> SampleBatch:
        """See ``Sampler``."""
        collector, done = SampleCollector(len(request)), 0
        while done < len(request):
            part = slice(done, done + self._batch_size.size)
            output = self._try(request.rows(part))
            if output is None:
                self._batch_size.halve(len(request.rows(part)))
                continue
            collector.put(part, output)
            done += len(output.steps)
        return collector.batch(request.record)

    @property
    def in_flight(self) -> int:
        """Images per call from now on: ``batch``, or fewer after memory was short."""
        return self._batch_size.size

    def _decoding(self) -> AbstractContextManager[None]:
        if self.decode_batch is None:
            return nullcontext()
        from tpdm.pipelines.vae import decoding_in_slices

        return decoding_in_slices(self.pipeline.pipe, self.decode_batch)

    def _try(self, request: SampleRequest) -> AdaptiveOutput | None:
        """One call of the pipeline. None: memory is short, and everything of the attempt is freed."""
        call = pipeline_call(request, self.pipeline, self.arguments, self.embeddings)
        try:
            with annotate_numeric_errors(request.prompts, request.seeds), self._decoding():
                return self.pipeline(**call)
        except torch.OutOfMemoryError:
            return None


@dataclass(frozen=True)
class ContinuousSampler:
    """A ``Sampler`` with continuous batching: an image that finishes gives its slot to the next one.

    Images take slots in the order of the request, so that the same request gives the same bits. The images equal those
    of ``PipelineSampler`` up to floating-point rounding, and to the bit if ``slots`` and ``batch`` are 1. A static
    batch needs E[max N over the batch] calls of the denoiser per slot and image, continuous batching about E[N]. The
    gain depends on how the time of a call grows with its rows (docs/serving.md). Images are encoded and decoded one at
    a time.

    Attributes:
        pipeline: The attached pipeline.
        slots: Images computed at once, >= 1, halved if memory is short.
        arguments: Arguments of every call (guidance_scale, height ...).
        embeddings: Precomputed prompt embeddings. None (the default) lets the pipeline encode the prompts.
    """

    pipeline: AdaptivePipeline
    slots: int
    arguments: dict[str, Any]
    embeddings: EmbeddingStore | None = None
    _batch_size: AdaptiveBatchSize = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_batch_size", AdaptiveBatchSize(self.slots, "rl.rollout_batch", "images"))

    def __call__(self, request: SampleRequest) -> SampleBatch:
        """See ``Sampler``."""
        collector = SampleCollector(len(request))
        while collector.missing:
            if not self._try(request, collector):
                self._batch_size.halve(min(len(collector.missing), self._batch_size.size))
        return collector.batch(request.record)

    def _try(self, request: SampleRequest, collector: SampleCollector) -> bool:
        """Makes the missing images.

        Returns:
            False if memory was short. Then some images may be missing, and everything else of the attempt is freed.
        """
        from tpdm.sampling.batching.pipeline import BatchedPipeline

        def make(row: int, run: BatchedRun) -> None:
            part = slice(row, row + 1)
            image = request.rows(part)
            with annotate_numeric_errors(image.prompts, image.seeds):
                call = pipeline_call(image, self.pipeline, self.arguments, self.embeddings)
                collector.put(part, run(self.pipeline, **call))

        slots = self._batch_size.size
        shared = BatchedPipeline(self.pipeline.pipe, slots, deterministic=True)
        # All runs are created before the first one starts, which fixes their order.
        runs = [(row, shared.run()) for row in collector.missing]
        # Twice the slots, so that images are encoded and decoded while others occupy the slots.
        pool = ThreadPoolExecutor(2 * slots, thread_name_prefix="tpdm-rollout")
        try:
            for future in as_completed([pool.submit(make, *run) for run in runs]):
                future.result()
        except (torch.OutOfMemoryError, BackboneError) as error:
            if not any(isinstance(cause, torch.OutOfMemoryError) for cause in (error, error.__cause__)):
                raise
            return False
        finally:
            # After an error or an interruption the other images stop at their next step.
            shared.close(TpdmError("The rollout ended before this image was finished."))
            pool.shutdown(cancel_futures=True)
        return True


def choose_sampler(
    recipe: Recipe, pipeline: AdaptivePipeline, arguments: dict[str, Any], embeddings: EmbeddingStore | None
) -> Sampler:
    """The sampler that ``rl.rollout`` names.

    Args:
        recipe: Recipe of the run.
        pipeline: The attached pipeline.
        arguments: Arguments of every pipeline call.
        embeddings: Precomputed prompt embeddings of the run. None lets the pipeline encode the prompts.
    """
    if recipe.rl.rollout == "continuous":
        return ContinuousSampler(pipeline, recipe.rl.rollout_batch, arguments, embeddings)
    return PipelineSampler(pipeline, recipe.rl.rollout_batch, arguments, embeddings, recipe.backbone.decode_batch)
