"""Engine of the HTTP process when images are made by replicas in other processes. Imports neither torch nor Ray."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from tpdm.core.errors import TpdmError
from tpdm.serving.engine.interface import (
    DeadlineExceeded,
    EngineStatus,
    EngineStopped,
    Event,
    Failed,
    ImageDone,
    ImageRequest,
    QueueFull,
    RequestCancelled,
    StepEvent,
)

INITIAL_SECONDS = 1.0  # estimate of the seconds per image before the first one

STOPPED = "The server was stopped before the image was finished. Send the request again."


@dataclass(frozen=True)
class ReplicaStatus:
    """Status of a replica.

    Attributes:
        replica: Name of its process.
        status: Status of its engine.
    """

    replica: str
    status: EngineStatus


MakeImage = Callable[[ImageRequest], AsyncGenerator[Event | ReplicaStatus, None]]


@dataclass
class _Job:
    request: ImageRequest
    on_event: Callable[[Event], None]
    submitted: float
    started: float | None = None
    task: asyncio.Task[ImageDone | Failed] | None = None
    ended_by: TpdmError | None = None


class RemoteEngine:
    """``Engine`` whose images are made by replicas.

    Args:
        make: Yields all events of an image, and a ``ReplicaStatus`` before the last one. It is closed early if the
            request is cancelled.
        slots: Number of slots of all replicas.
        queue_limit: Maximum number of waiting requests.
        restart: Replaces the replicas one by one. They finish their requests.
        stop: Stops all replicas.
    """

    def __init__(
        self,
        make: MakeImage,
        *,
        slots: int,
        queue_limit: int,
        restart: Callable[[], None] = lambda: None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.restart = restart
        self._make, self._stop = make, stop
        self._slots, self._queue_limit = slots, queue_limit
        self._accepting = True
        self._jobs: dict[str, _Job] = {}
        self._counts: Counter[str] = Counter()
        self._statuses: dict[str, EngineStatus] = {}
        self._mean_seconds = INITIAL_SECONDS
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tpdm-remote", daemon=True)
        self._thread.start()

    def submit(self, request: ImageRequest, on_event: Callable[[Event], None]) -> str:
        """See ``Engine``. If a replica refuses the request, its last event contains the ``RequestRefused``."""
        key = secrets.token_urlsafe(16)
        job = _Job(request, on_event, time.monotonic())
        with self._changed:
            if not self._accepting:
                self._counts["refused"] += 1
                raise EngineStopped("The server is shutting down and accepts no new requests. Send the request again.")
            if len(self._jobs) >= self._slots + self._queue_limit:
                self._counts["refused"] += 1
                wait = self._mean_seconds * max(1.0, self._queue_limit / self._slots)
                raise QueueFull(f"The queue is full (queue limit: {self._queue_limit}). Try again later.", wait)
            self._jobs[key] = job
        self._loop.call_soon_threadsafe(self._begin, key, job)
        return key

    def cancel(self, request_id: str) -> bool:
        """See ``Engine``."""
        return self._end(request_id, RequestCancelled("The request was cancelled before the image was finished."))

    def status(self) -> EngineStatus:
        """See ``Engine``. Calls and rows are those that the replicas reported with finished images."""
        with self._changed:
            running = sum(job.started is not None for job in self._jobs.values())
            return EngineStatus(
                waiting=len(self._jobs) - running,
                running=running,
                slots=self._slots,
                queue_limit=self._queue_limit,
                accepting=self._accepting,
                finished=self._counts["finished"],
                cancelled=self._counts["cancelled"],
                expired=self._counts["expired"],
                failed=self._counts["failed"],
                refused=self._counts["refused"],
                calls=sum(status.calls for status in self._statuses.values()),
                rows=sum(status.rows for status in self._statuses.values()),
                image_steps=self._counts["image_steps"],
            )

    def drain(self, timeout: float) -> bool:
        """See ``Engine``."""
        with self._changed:
            self._accepting = False
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """See ``Engine``. Stops the replicas."""
        with self._changed:
            self._accepting = False
            remaining = tuple(self._jobs)
        for key in remaining:
            self._end(key, EngineStopped(STOPPED))
        self.drain(5.0)
        self._stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, key: str, job: _Job) -> None:
        job.task = self._loop.create_task(self._follow(job))
        late = DeadlineExceeded(
            f"The image was not finished within {job.request.timeout} seconds. Send the request again with more time."
        )
        timer = None
        if job.request.timeout is not None:
            timer = self._loop.call_later(job.request.timeout, self._end, key, late)

        def finish(task: asyncio.Task[ImageDone | Failed]) -> None:
            if timer is not None:
                timer.cancel()
            self._emit_final(key, job, _outcome(task, job))

        job.task.add_done_callback(finish)
        if job.ended_by is not None:
            job.task.cancel()

    async def _follow(self, job: _Job) -> ImageDone | Failed:
        async with aclosing(self._make(job.request)) as events:
            async for event in events:
                if isinstance(event, ReplicaStatus):
                    with self._changed:
                        self._statuses[event.replica] = event.status
                elif isinstance(event, StepEvent):
                    with self._changed:
                        job.started = job.started or time.monotonic()
                        self._counts["image_steps"] += not event.again
                    job.on_event(event)
                else:
                    return event
        return Failed(EngineStopped("The replica ended without an image. Send the request again."))

    def _end(self, key: str, error: TpdmError) -> bool:
        with self._changed:
            job = self._jobs.get(key)
            if job is None or job.ended_by is not None:
                return False
            job.ended_by = error
        self._loop.call_soon_threadsafe(lambda: job.task is not None and job.task.cancel())
        return True

    def _emit_final(self, key: str, job: _Job, last: ImageDone | Failed) -> None:
        job.on_event(last)
        with self._changed:
            del self._jobs[key]
            self._counts[_name(last)] += 1
            if isinstance(last, ImageDone):
                self._mean_seconds += 0.1 * (last.seconds - last.queued_seconds - self._mean_seconds)
            self._changed.notify_all()


def _outcome(task: asyncio.Task[ImageDone | Failed], job: _Job) -> ImageDone | Failed:
    """Last event of a task, with the seconds measured in this process."""
    if task.cancelled():
        return Failed(job.ended_by or EngineStopped(STOPPED))
    error = task.exception()
    if error is not None:
        return Failed(error if isinstance(error, Exception) else RuntimeError(str(error)))
    last, now = task.result(), time.monotonic()
    if isinstance(last, Failed):
        return last
    started = now if job.started is None else job.started
    return replace(last, queued_seconds=started - job.submitted, seconds=now - job.submitted)


def _name(last: ImageDone | Failed) -> str:
    if isinstance(last, ImageDone):
        return "finished"
    if isinstance(last.error, RequestCancelled):
        return "cancelled"
    return "expired" if isinstance(last.error, DeadlineExceeded) else "failed"
