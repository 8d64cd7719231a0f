"""Requests while the engine has them, and the words that they end with."""

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
    """A request while the engine has it.

    Attributes:
        key: its id.
        resolved: the request, with its batch key.
        on_event: its listener.
        submitted, admitted: when it came and when it got its slot, in seconds of the monotonic clock.
        run: its run of the pipeline.
        previews: where its steps go; None tells them at once.
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
    """A request that is to end with an error, at its next step or, where nobody works on it, now."""

    job: Job
    error: TpdmError
    worked_on: bool


def tell(job: Job, event: Event) -> None:
    """Says an event to the listener of a request."""
    try:
        job.on_event(event)
    except Exception as error:  # a listener's mistake must not end the thread that all others need
        logger.error("the listener of request %s failed: %s", job.key, describe(error))


def image_done(job: Job, output: AdaptiveOutput, warnings: tuple[str, ...]) -> ImageDone:
    """The last event of a request whose image is there."""
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


def reason(request: ImageRequest, why: Literal["cancelled", "expired"]) -> TpdmError:
    """Why a request got no image."""
    if why == "cancelled":
        return RequestCancelled("got a cancellation, expected to finish the picture; send it again if it is wanted.")
    return DeadlineExceeded(
        f"got no picture within {request.timeout:g} seconds, expected one; send it again with more time."
    )


def engine_status(queue: Scheduler, shared: BatchedPipeline, image_steps: int) -> EngineStatus:
    """The state of an engine in numbers; the caller holds the lock of the queue.

    Args:
        queue: of its requests.
        shared: whose denoiser calls count.
        image_steps: that its images made.
    """
    ended = queue.ended
    return EngineStatus(
        waiting=queue.waiting,
        running=queue.running,
        slots=queue.slots,
        queue_limit=queue.limit,
        accepting=queue.accepting,
        finished=ended["finished"],
        cancelled=ended["cancelled"],
        expired=ended["expired"],
        failed=ended["failed"],
        refused=queue.refused,
        calls=shared.denoiser.calls,
        rows=shared.denoiser.rows,
        image_steps=image_steps,
    )
