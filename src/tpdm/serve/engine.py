"""The engine behind ``tpdm serve``: requests in, events out, all running images in one denoiser call per step."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tpdm.pipelines.attach import AdaptiveOutput, attach
from tpdm.pipelines.continuous import ContinuousPipeline, ContinuousRun, Landing
from tpdm.serve.options import RequestReader
from tpdm.serve.previews import PreviewStream, PreviewThread
from tpdm.serve.queue import Outcome, RequestQueue
from tpdm.serve.requests import (
    DeadlineExceeded,
    EngineStatus,
    EngineStopped,
    Event,
    Failed,
    ImageDone,
    ImageRequest,
    RequestCancelled,
    RequestRefused,
    StepEvent,
)
from tpdm.types import Policy, TpdmError

AHEAD = 2  # requests whose text is encoded while all places are taken
log = logging.getLogger("tpdm.serve")


@dataclass
class _Job:
    """A request while the engine has it."""

    key: str
    request: ImageRequest
    on_event: Callable[[Event], None]
    submitted: float
    run: ContinuousRun
    previews: PreviewStream | None = None
    placed: float = 0.0


@dataclass(frozen=True)
class _Ending:
    """A request that is to end with an error, at its next step or, where nobody works on it, now."""

    job: _Job
    error: TpdmError
    worked_on: bool


def make_engine(
    backbone: str,
    tpm: str | Path | Policy | None,
    *,
    slots: int = 8,
    queue_limit: int = 64,
    device: str = "auto",
    dtype: str = "fp32",
) -> PipelineEngine:
    """Loads a pipeline and starts an engine on it.

    Args:
        backbone: "tinyworld", a diffusers folder or a Hub name.
        tpm: folder, Hub id or "tinyworld"; None serves the pipeline's own schedule.
        slots: images in one denoiser call, at least 1.
        queue_limit: requests that may wait.
        device: "auto", "cpu", "cuda" ...
        dtype: "fp32", "bf16" or "fp16".

    Raises:
        TpdmError: the pipeline or the TPM cannot be loaded, or do not fit each other.
    """
    from tpdm.pipelines.load import call_defaults, load_pipeline

    pipe = load_pipeline(backbone, dtype, device)
    return PipelineEngine(pipe, tpm, slots=slots, queue_limit=queue_limit, defaults=call_defaults(backbone))


class PipelineEngine:
    """An ``Engine`` on a stock diffusers pipeline.

    Args:
        pipe: that ``attach`` accepts, on its device.
        tpm: a TPM or its folder; None takes the pipeline's own schedule.
        slots: images in one denoiser call.
        queue_limit: requests that may wait.
        defaults: arguments of the pipeline's call where a request says nothing.
    """

    def __init__(
        self,
        pipe: Any,
        tpm: str | Path | Policy | None,
        *,
        slots: int,
        queue_limit: int,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        trained = None if tpm is None else attach(pipe, tpm, defaults=defaults)
        self._shared = ContinuousPipeline(pipe, slots)
        self._reader = RequestReader(self._shared, trained, defaults or {})
        self._previews = PreviewThread(self._shared)
        self._queue = RequestQueue(queue_limit, slots, AHEAD)
        self._jobs: dict[str, _Job] = {}
        self._endings: list[_Ending] = []
        self._lock = threading.RLock()
        self._work_there, self._desk, self._answered = (threading.Condition(self._lock) for _ in range(3))
        self._closing = False
        self._image_steps = 0
        targets = [("desk", self._attend), *(("image", self._work) for _ in range(slots + AHEAD))]
        self._threads = [threading.Thread(target=run, name=f"tpdm-{name}", daemon=True) for name, run in targets]
        for thread in self._threads:
            thread.start()

    def submit(self, request: ImageRequest, on_event: Callable[[Event], None]) -> str:
        """See ``Engine``."""
        try:
            self._reader.check(request)
        except RequestRefused:
            with self._lock:
                self._queue.refused += 1
            raise
        now, key = time.monotonic(), secrets.token_urlsafe(16)
        run = self._shared.run(lambda: self._placed(key), lambda landing: self._landed(key, landing))
        with self._lock:
            deadline = float("inf") if request.timeout is None else now + request.timeout
            self._queue.submit(key, self._reader.group(request), deadline)
            job = self._jobs[key] = _Job(key, request, on_event, now, run)
            if request.previews:
                job.previews = self._previews.stream(request, lambda event: _tell(job, event))
            self._work_there.notify()
            if request.timeout is not None:
                self._desk.notify()
        return key

    def cancel(self, request_id: str) -> bool:
        """See ``Engine``."""
        with self._lock:
            return self._ask_to_end(request_id, "cancelled")

    def status(self) -> EngineStatus:
        """See ``Engine``."""
        meeting = self._shared.meeting
        with self._lock:
            queue, ended = self._queue, self._queue.ended
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
                calls=meeting.calls,
                rows=meeting.rows,
                image_steps=self._image_steps,
            )

    def drain(self, timeout: float) -> bool:
        """See ``Engine``."""
        with self._lock:
            self._queue.stop()
            return self._answered.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """See ``Engine``. May be called again."""
        with self._lock:
            self._queue.stop()
            self._closing = True
            stopped = EngineStopped("got a shutdown before the picture was done, expected time for it; send it again.")
            for key in self._queue.waiting_keys():
                self._queue.end(key, "failed")
                self._endings.append(_Ending(self._jobs[key], stopped, worked_on=False))
            self._work_there.notify_all()
            self._desk.notify()
        self._shared.close(stopped)
        for thread in self._threads:
            thread.join()
        self._previews.close()

    def _work(self) -> None:
        """One image after the other; as many threads as there are places, and a few more."""
        while True:
            with self._lock:
                self._work_there.wait_for(lambda: self._closing or self._queue.has_next)
                key = None if self._closing else self._queue.take(time.monotonic())
                if key is None:
                    return
                job = self._jobs[key]
            self._make(job)

    def _make(self, job: _Job) -> None:
        try:
            attached, arguments = self._reader.read(job.request)
            output = job.run(attached, **arguments)
        except TpdmError as error:
            self._answer(job, "failed", Failed(error))
        except ValueError as error:
            # Pipelines say so of sizes that they cannot make.
            self._answer(job, "failed", Failed(RequestRefused(str(error))))
        except Exception as error:
            log.exception("request %s failed", job.key)
            self._answer(job, "failed", Failed(error))
        else:
            self._answer(job, "finished", _done(job, output))

    def _placed(self, key: str) -> None:
        with self._lock:
            self._jobs[key].placed = time.monotonic()
            self._queue.seat(key)

    def _landed(self, key: str, landing: Landing) -> None:
        with self._lock:
            job = self._jobs[key]
            self._image_steps += 1
            if landing.t == 0:
                self._queue.unseat(key, time.monotonic())
                self._work_there.notify()
        if job.previews is None:
            _tell(job, StepEvent(landing.index, landing.t))
        else:
            job.previews.step(landing)

    def _answer(self, job: _Job, outcome: Outcome, event: ImageDone | Failed) -> None:
        """The last event of a request that was worked on."""
        with self._lock:
            ended = self._queue.end(job.key, outcome)
            self._work_there.notify()
        if ended == "cancelled" or ended == "expired":
            event = Failed(_reason(job.request, ended))
        self._say_last(job, event)

    def _say_last(self, job: _Job, event: ImageDone | Failed) -> None:
        if job.previews is None:
            self._close_job(job, event)
        else:
            job.previews.end(lambda: self._close_job(job, event))

    def _close_job(self, job: _Job, event: ImageDone | Failed) -> None:
        _tell(job, event)
        with self._lock:
            del self._jobs[job.key]  # after the answer, so that a drained engine has answered
            self._answered.notify_all()

    def _ask_to_end(self, key: str, why: Literal["cancelled", "expired"]) -> bool:
        place = self._queue.ask_to_end(key, why)
        if place is None:
            return False
        job = self._jobs[key]
        self._endings.append(_Ending(job, _reason(job.request, why), worked_on=place != "waiting"))
        self._desk.notify()
        return True

    def _attend(self) -> None:
        """Ends what is overdue or cancelled."""
        while True:
            with self._lock:
                for key in self._queue.overdue(time.monotonic()):
                    self._ask_to_end(key, "expired")
                if not self._endings:
                    if self._closing:
                        return
                    deadline = self._queue.next_deadline()
                    self._desk.wait(None if deadline == float("inf") else deadline - time.monotonic())
                endings, self._endings = self._endings, []
            # Outside of the lock: runs take it when they get their place.
            for ending in endings:
                if ending.worked_on:
                    ending.job.run.stop(ending.error)
                else:
                    self._say_last(ending.job, Failed(ending.error))


def _tell(job: _Job, event: Event) -> None:
    try:
        job.on_event(event)
    except Exception:  # a listener's mistake must not end the thread that all others need
        log.exception("the listener of request %s failed", job.key)


def _done(job: _Job, output: AdaptiveOutput) -> ImageDone:
    now = time.monotonic()
    return ImageDone(
        image=output.images[0],
        steps=output.steps[0],
        times=tuple(output.times[0]),
        queued_seconds=job.placed - job.submitted,
        seconds=now - job.submitted,
    )


def _reason(request: ImageRequest, why: Literal["cancelled", "expired"]) -> TpdmError:
    if why == "cancelled":
        return RequestCancelled("got a cancellation, expected to finish the picture; send it again if it is wanted.")
    return DeadlineExceeded(
        f"got no picture within {request.timeout:g} seconds, expected one; send it again with more time."
    )
