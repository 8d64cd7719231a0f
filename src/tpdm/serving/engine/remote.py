"""An engine that asks others: what a front knows of images that are made in other processes. No torch, no Ray."""

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

FIRST_GUESS = 1.0  # seconds of an image before any was made


@dataclass(frozen=True)
class ReplicaStatus:
    """What a replica has done since its start, with the name of its process."""

    replica: str
    status: EngineStatus


Make = Callable[[ImageRequest], AsyncGenerator[Event | ReplicaStatus, None]]


@dataclass
class _Job:
    request: ImageRequest
    on_event: Callable[[Event], None]
    submitted: float
    started: float | None = None
    task: asyncio.Task[ImageDone | Failed] | None = None
    ended_by: TpdmError | None = None


class RemoteEngine:
    """An ``Engine`` whose images are made by replicas.

    Args:
        make: all events of an image and a report before the last; is closed early for one that is cancelled.
        slots: images in flight, of all replicas together.
        queue_limit: images that may wait.
        restart: replaces the replicas one by one, without losing what they have.
        stop: ends them all.
    """

    def __init__(
        self,
        make: Make,
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
        self._reports: dict[str, EngineStatus] = {}
        self._mean_seconds = FIRST_GUESS
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tpdm-remote", daemon=True)
        self._thread.start()

    def submit(self, request: ImageRequest, on_event: Callable[[Event], None]) -> str:
        """See ``Engine``. What only a replica can refuse is refused by an event."""
        key = secrets.token_urlsafe(16)
        job = _Job(request, on_event, time.monotonic())
        with self._changed:
            if not self._accepting:
                self._counts["refused"] += 1
                raise EngineStopped("got a request while the server stops, expected none; send it to another one.")
            if len(self._jobs) >= self._slots + self._queue_limit:
                self._counts["refused"] += 1
                wait = self._mean_seconds * max(1.0, self._queue_limit / self._slots)
                raise QueueFull(f"got a request with {len(self._jobs)} before it, expected fewer; try later.", wait)
            self._jobs[key] = job
        self._loop.call_soon_threadsafe(self._begin, key, job)
        return key

    def cancel(self, request_id: str) -> bool:
        """See ``Engine``."""
        return self._end(request_id, RequestCancelled("got a cancellation, expected to finish the picture."))

    def status(self) -> EngineStatus:
        """See ``Engine``. Calls and rows are those that replicas have reported with finished images."""
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
                calls=sum(status.calls for status in self._reports.values()),
                rows=sum(status.rows for status in self._reports.values()),
                image_steps=self._counts["image_steps"],
            )

    def drain(self, timeout: float) -> bool:
        """See ``Engine``."""
        with self._changed:
            self._accepting = False
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """See ``Engine``. Ends the replicas."""
        with self._changed:
            self._accepting = False
            left = tuple(self._jobs)
        for key in left:
            self._end(key, EngineStopped("got a shutdown before the picture was done; send it again."))
        self.drain(5.0)
        self._stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, key: str, job: _Job) -> None:
        job.task = self._loop.create_task(self._follow(job))
        late = DeadlineExceeded(f"got no picture within {job.request.timeout} seconds; send it again with more time.")
        timer = None
        if job.request.timeout is not None:
            timer = self._loop.call_later(job.request.timeout, self._end, key, late)

        def finish(task: asyncio.Task[ImageDone | Failed]) -> None:
            if timer is not None:
                timer.cancel()
            self._answer(key, job, _outcome(task, job))

        job.task.add_done_callback(finish)
        if job.ended_by is not None:
            job.task.cancel()

    async def _follow(self, job: _Job) -> ImageDone | Failed:
        async with aclosing(self._make(job.request)) as events:
            async for event in events:
                if isinstance(event, ReplicaStatus):
                    with self._changed:
                        self._reports[event.replica] = event.status
                elif isinstance(event, StepEvent):
                    with self._changed:
                        job.started = job.started or time.monotonic()
                        self._counts["image_steps"] += not event.again
                    job.on_event(event)
                else:
                    return event
        return Failed(EngineStopped("got no end of the picture from its replica; send it again."))

    def _end(self, key: str, why: TpdmError) -> bool:
        with self._changed:
            job = self._jobs.get(key)
            if job is None or job.ended_by is not None:
                return False
            job.ended_by = why
        self._loop.call_soon_threadsafe(lambda: job.task is not None and job.task.cancel())
        return True

    def _answer(self, key: str, job: _Job, last: ImageDone | Failed) -> None:
        job.on_event(last)
        with self._changed:
            del self._jobs[key]
            self._counts[_name(last)] += 1
            if isinstance(last, ImageDone):
                self._mean_seconds += 0.1 * (last.seconds - last.queued_seconds - self._mean_seconds)
            self._changed.notify_all()


def _outcome(task: asyncio.Task[ImageDone | Failed], job: _Job) -> ImageDone | Failed:
    """The last event of a task that is over, in the front's own seconds."""
    if task.cancelled():
        return Failed(job.ended_by or EngineStopped("got a shutdown before the picture was done; send it again."))
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
