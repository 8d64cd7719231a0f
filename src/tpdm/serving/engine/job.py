"""State of a request inside the engine, and the events that end it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tpdm.core.errors import TpdmError
from tpdm.pipelines.attach import AdaptiveOutput
from tpdm.sampling.batching.pipeline import BatchedPipeline, BatchedRun
from tpdm.serving.engine.interface import (
    DeadlineExceeded,
    EngineStatus,
    Event,
    ImageDone,
    ImageRequest,
    RequestCancelled,
)
from tpdm.serving.engine.previews import PreviewStream
from tpdm.serving.engine.request_adapter import ResolvedRequest
from tpdm.serving.engine.scheduler import Scheduler
from tpdm.serving.process import describe

logger = logging.getLogger("tpdm.serving")


@dataclass
class Job:
    """A request inside the engine.

    Attributes:
        key: Id of the request.
        resolved: The request with its batch key.
        on_event: Listener of its events.
        submitted: Time of the submission, in seconds of the monotonic clock.
        run: Its run of the pipeline.
        previews: Stream of its step events. None emits them directly.
        admitted: Time when it got its slot.
    """

    key: str
    resolved: ResolvedRequest
    on_event: Callable[[Event], None]
    submitted: float
    run: BatchedRun
    previews: PreviewStream | None = None
    admitted: float = 0.0

    @property
    def request(self) -> ImageRequest:
        """The request."""
        return self.resolved.request


@dataclass(frozen=True)
class Termination:
    """A request that has to end with an error.

    Attributes:
        job: The request.
        error: Error of its last event.
        started: Whether a thread works on it, which ends it at its next step. Else it ends now.
    """

    job: Job
    error: TpdmError
    started: bool


def emit(job: Job, event: Event) -> None:
    """Calls the listener of a request."""
    try:
        job.on_event(event)
    except Exception as error:  # an error of one listener must not end the thread that serves all requests
        logger.error("the listener of request %s failed: %s", job.key, describe(error))


def image_done(job: Job, output: AdaptiveOutput, warnings: tuple[str, ...]) -> ImageDone:
    """Returns the last event of a finished request.

    Args:
        job: The request.
        output: Output of its run.
        warnings: Sentences for the client.
    """
    now, flagged = time.monotonic(), output.nsfw_content_detected
    return ImageDone(
        image=output.images[0],
        steps=output.steps[0],
        times=tuple(output.times[0]),
        queued_seconds=job.admitted - job.submitted,
        seconds=now - job.submitted,
        warnings=warnings,
        nsfw_content_detected=None if flagged is None else bool(flagged[0]),
    )


def termination_error(request: ImageRequest, reason: Literal["cancelled", "expired"]) -> TpdmError:
    """Returns the error of a request that was cancelled or has expired."""
    if reason == "cancelled":
        return RequestCancelled(
            "The request was cancelled before the image was finished. Send it again if you still need it."
        )
    return DeadlineExceeded(
        f"The image was not finished within {request.timeout:g} seconds. Send the request again with more time."
    )


def engine_status(scheduler: Scheduler, shared: BatchedPipeline, image_steps: int) -> EngineStatus:
    """Returns the status of an engine. The caller holds its lock.

    Args:
        scheduler: Scheduler of the engine.
        shared: Pipeline of the engine.
        image_steps: Number of steps of all images.
    """
    ended = scheduler.ended
    return EngineStatus(
        waiting=scheduler.waiting,
        running=scheduler.running,
        slots=scheduler.slots,
        queue_limit=scheduler.limit,
        accepting=scheduler.accepting,
        finished=ended["finished"],
        cancelled=ended["cancelled"],
        expired=ended["expired"],
        failed=ended["failed"],
        refused=scheduler.refused,
        calls=shared.denoiser.calls,
        rows=shared.denoiser.rows,
        image_steps=image_steps,
    )
