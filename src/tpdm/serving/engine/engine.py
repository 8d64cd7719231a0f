"""The engine behind ``tpdm serve``: requests in, events out, all running images in one denoiser call per step."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tpdm.core.types import Policy
from tpdm.pipelines.arguments import is_argument_error
from tpdm.pipelines.attach import attach
from tpdm.pipelines.compatibility import check_pictures
from tpdm.policies.pretrained import backbone_defaults, load_policy
from tpdm.sampling.batching.denoiser import Slot
from tpdm.sampling.batching.micro_batcher import clear_traceback_frames
from tpdm.sampling.batching.pipeline import BatchedPipeline, StepInfo
from tpdm.serving.engine.interface import (
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
from tpdm.serving.engine.job import Job, Termination, engine_status, image_done, reason, tell
from tpdm.serving.engine.previews import PreviewThread
from tpdm.serving.engine.request_adapter import RequestAdapter, TruncationChecker
from tpdm.serving.engine.scheduler import Outcome, Scheduler
from tpdm.serving.process import describe, limit_malloc_arenas, quiet_libraries

SPARE = 2  # threads beyond the places and the requests ahead, for images that are being decoded
logger = logging.getLogger("tpdm.serving")


def make_engine(
    backbone: str,
    tpm: str | Path | Policy | None,
    *,
    slots: int = 8,
    queue_limit: int = 64,
    device: str = "auto",
    dtype: str = "fp32",
    variant: str | None = None,
    log_prompts: bool = False,
    guidance_scale: float | None = None,
    true_cfg_scale: float | None = None,
) -> PipelineEngine:
    """Loads a pipeline and starts an engine on it, in a process that serves alone: see ``limit_malloc_arenas``.

    Args:
        backbone: "tinyworld", a diffusers folder or a Hub name.
        tpm: folder, Hub id or "tinyworld"; None serves the pipeline's own schedule.
        slots: images in one denoiser call, at least 1.
        queue_limit: requests that may wait.
        device: "auto", "cpu", "cuda" ...
        dtype: "fp32", "bf16" or "fp16".
        variant: of the pipeline's weight files, such as "fp16"; None reads the plain ones.
        log_prompts: lets libraries log warnings, some of which quote prompts.
        guidance_scale, true_cfg_scale: of requests that give none, as in ``ImageRequest``; None leaves those of the
            TPM's training, or the pipeline's own.

    Raises:
        TpdmError: the pipeline or the TPM cannot be loaded, or do not fit each other, or a scale has no effect.
    """
    from tpdm.pipelines.arguments import merge_arguments
    from tpdm.pipelines.guidance import named_scales
    from tpdm.pipelines.loading.load import ALL, call_defaults, load_pipeline

    limit_malloc_arenas()
    pipe = load_pipeline(backbone, dtype, device, ALL, variant)
    if not log_prompts:
        quiet_libraries()  # after loading, whose warnings are of no prompt
    named, avoided = named_scales(pipe, guidance_scale, true_cfg_scale)
    merge_arguments(pipe, (), {"prompt": "a", **named}, avoided)  # what no request could use is said now
    own, said = call_defaults(backbone), {**avoided, **named}
    return PipelineEngine(pipe, tpm, slots=slots, queue_limit=queue_limit, defaults=own, said=said)


class PipelineEngine:
    """An ``Engine`` on a stock diffusers pipeline.

    Args:
        pipe: that ``attach`` accepts, on its device.
        tpm: a TPM or its folder; None takes the pipeline's own schedule.
        slots: images in one denoiser call.
        queue_limit: requests that may wait.
        defaults: arguments of the pipeline's call that this backbone wants, where neither a request says anything
            nor the TPM was trained with others.
        said: such arguments that go before those of the TPM's training.
    """

    def __init__(
        self,
        pipe: Any,
        tpm: str | Path | Policy | None,
        *,
        slots: int,
        queue_limit: int,
        defaults: dict[str, Any] | None = None,
        said: dict[str, Any] | None = None,
    ) -> None:
        defaults, said = defaults or {}, said or {}
        check_pictures(pipe)
        policy = load_policy(tpm).to(pipe._execution_device) if isinstance(tpm, str | Path) else tpm
        trained = (
            None if policy is None else attach(pipe, policy, defaults={**backbone_defaults(defaults, policy), **said})
        )
        defaults = {**defaults, **said}
        self._shared = BatchedPipeline(pipe, slots, scheduler=self)
        self._adapter = RequestAdapter(self._shared, trained, defaults)
        self._truncation = TruncationChecker(pipe, defaults if trained is None else trained.defaults)
        self._previews = PreviewThread(self._shared)
        self._queue = Scheduler(queue_limit, slots, slots)
        self._jobs: dict[str, Job] = {}
        self._endings: list[Termination] = []
        self._lock = threading.RLock()
        self._work_there, self._desk, self._answered = (threading.Condition(self._lock) for _ in range(3))
        self._closing = False
        self._image_steps = 0
        targets = [("desk", self._attend), *(("image", self._work) for _ in range(2 * slots + SPARE))]
        self._threads = [threading.Thread(target=run, name=f"tpdm-{name}", daemon=True) for name, run in targets]
        for thread in self._threads:
            thread.start()

    def submit(self, request: ImageRequest, on_event: Callable[[Event], None]) -> str:
        """See ``Engine``."""
        try:
            resolved = self._adapter.resolve(request)
        except RequestRefused:
            with self._lock:
                self._queue.refused += 1
            raise
        now, key = time.monotonic(), secrets.token_urlsafe(16)
        run = self._shared.run(lambda step: self._on_step(key, step), key)
        with self._lock:
            deadline = float("inf") if request.timeout is None else now + request.timeout
            self._queue.submit(key, resolved.batch_key, deadline)
            job = self._jobs[key] = Job(key, resolved, on_event, now, run)
            if request.previews:
                job.previews = self._previews.stream(request, lambda event: tell(job, event))
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
        with self._lock:
            return engine_status(self._queue, self._shared, self._image_steps)

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
                self._endings.append(Termination(self._jobs[key], stopped, worked_on=False))
            self._work_there.notify_all()
            self._desk.notify()
        self._shared.close(stopped)
        for thread in self._threads:
            thread.join()
        self._previews.close()

    def _work(self) -> None:
        """One image after the other; as many threads as places and requests ahead, and a few more."""
        while True:
            with self._lock:
                self._work_there.wait_for(lambda: self._closing or self._queue.has_next)
                key = None if self._closing else self._queue.start(time.monotonic())
                if key is None:
                    return
                if self._queue.has_next:
                    self._work_there.notify()  # several are taken at once, and whoever left woke one thread
                job = self._jobs[key]
            self._make(job)

    def _make(self, job: Job) -> None:
        found = self._try(job)
        if isinstance(found, ImageDone):
            self._answer(job, "finished", found)
        else:
            clear_traceback_frames(found)  # the answer may wait for its reader, with the error in it
            self._answer(job, "failed", Failed(found))

    def _try(self, job: Job) -> ImageDone | Exception:
        try:
            attached, arguments = self._adapter.prepare(job.resolved)
            warnings = self._truncation.warnings(job.request) + job.resolved.warnings
            return image_done(job, job.run(attached, **arguments), warnings)
        except (RequestRefused, RequestCancelled, DeadlineExceeded, EngineStopped) as error:
            return error
        except Exception as error:
            # Pipelines say so of sizes that they cannot make.
            if isinstance(error, ValueError) and is_argument_error(error, self._shared.pipe):
                return RequestRefused(str(error))
            # Here, because what led to an error does not cross processes.
            logger.error("request %s failed: %s", job.key, describe(error))
            return error

    def request_slot(self, slot: Slot) -> None:
        """See ``SlotScheduler``."""
        with self._lock:
            self._queue.request_slot(slot.key)
            self._admit()

    def release_slot(self, slot: Slot, finished: bool) -> None:
        """See ``SlotScheduler``."""
        with self._lock:
            self._queue.release_slot(slot.key, time.monotonic(), finished)
            self._admit(slot)
            self._work_there.notify()

    def _admit(self, released: Slot | None = None) -> None:
        jobs = [self._jobs[key] for key in self._queue.admit()]
        for job in jobs:
            job.admitted = time.monotonic()
        self._shared.denoiser.update([job.run.slot for job in jobs], released)

    def _on_step(self, key: str, step: StepInfo) -> None:
        with self._lock:
            job = self._jobs[key]
            self._image_steps += 1
        if job.previews is None:
            tell(job, StepEvent(step.index, step.t))
        else:
            job.previews.step(step)

    def _answer(self, job: Job, outcome: Outcome, event: ImageDone | Failed) -> None:
        """The last event of a request that was worked on."""
        with self._lock:
            ended = self._queue.end(job.key, outcome)
            self._work_there.notify()
        if ended == "cancelled" or ended == "expired":
            event = Failed(reason(job.request, ended))
        self._say_last(job, event)

    def _say_last(self, job: Job, event: ImageDone | Failed) -> None:
        previews = job.previews
        if previews is None:
            self._close_job(job, event)
        else:
            previews.end(lambda: self._close_job(job, previews.noted(event)))

    def _close_job(self, job: Job, event: ImageDone | Failed) -> None:
        tell(job, event)
        with self._lock:
            del self._jobs[job.key]  # after the answer, so that a drained engine has answered
            self._answered.notify_all()

    def _ask_to_end(self, key: str, why: Literal["cancelled", "expired"]) -> bool:
        place = self._queue.abort(key, why)
        if place is None:
            return False
        job = self._jobs[key]
        self._endings.append(Termination(job, reason(job.request, why), worked_on=place != "waiting"))
        self._desk.notify()
        return True

    def _attend(self) -> None:
        """Ends what is overdue or cancelled."""
        while True:
            with self._lock:
                for key in self._queue.expired(time.monotonic()):
                    self._ask_to_end(key, "expired")
                if not self._endings:
                    if self._closing:
                        return
                    deadline = self._queue.next_deadline()
                    self._desk.wait(None if deadline == float("inf") else deadline - time.monotonic())
                endings, self._endings = self._endings, []
            for ending in endings:
                if ending.worked_on:
                    ending.job.run.abort(ending.error)
                else:
                    self._say_last(ending.job, Failed(ending.error))
