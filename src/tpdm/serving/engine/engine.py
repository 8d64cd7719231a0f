"""Engine of ``tpdm serve``: takes requests, emits events, and computes all running images in shared batches."""

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
from tpdm.pipelines.compatibility import check_generates_images
from tpdm.policies.pretrained import load_policy
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
from tpdm.serving.engine.job import Job, Termination, emit, engine_status, image_done, termination_error
from tpdm.serving.engine.previews import PreviewThread
from tpdm.serving.engine.request_adapter import RequestAdapter, TruncationChecker
from tpdm.serving.engine.scheduler import Outcome, Scheduler
from tpdm.serving.process import describe, limit_malloc_arenas, quiet_libraries

EXTRA_THREADS = 2  # beyond the slots and the requests that are encoded ahead, for images that are being decoded
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
    """Loads a pipeline and starts an engine on it, in a process that only serves: see ``limit_malloc_arenas``.

    Args:
        backbone: "tinyworld", a folder of a diffusers pipeline, or a Hub id.
        tpm: TPM, its folder, its Hub id, or "tinyworld". None uses the pipeline's own schedule.
        slots: Maximum number of images in one denoiser batch, at least 1.
        queue_limit: Maximum number of waiting requests.
        device: Device such as "cpu" or "cuda". "auto" uses a GPU if there is one.
        dtype: "fp32", "bf16" or "fp16".
        variant: Variant of the weight files, such as "fp16". None reads the plain ones.
        log_prompts: Whether libraries may log warnings, some of which quote prompts.
        guidance_scale: Default of ``ImageRequest.guidance_scale``. None uses the scale of the TPM's training, or the
            default of the pipeline.
        true_cfg_scale: Default of ``ImageRequest.true_cfg_scale``, in the same way.

    Raises:
        TpdmError: The pipeline or the TPM cannot be loaded, they do not fit each other, or a scale has no effect.
    """
    from tpdm.pipelines.arguments import merge_arguments
    from tpdm.pipelines.compatibility import PipelineSpec
    from tpdm.pipelines.guidance import Guidance, named_scales
    from tpdm.pipelines.loading.load import ALL, call_defaults, load_pipeline

    limit_malloc_arenas()
    pipe = load_pipeline(backbone, dtype, device, ALL, variant)
    if not log_prompts:
        quiet_libraries()  # after loading: its warnings contain no prompts
    scales, negative = named_scales(Guidance.find(pipe), guidance_scale, true_cfg_scale)
    merge_arguments(
        PipelineSpec.of(pipe), (), {"prompt": "a", **scales}, negative
    )  # raises if no request could use the scales
    return PipelineEngine(
        pipe,
        tpm,
        slots=slots,
        queue_limit=queue_limit,
        defaults=call_defaults(backbone),
        overrides={**negative, **scales},
    )


class PipelineEngine:
    """``Engine`` on a stock diffusers pipeline. It also is the ``SlotScheduler`` of its runs.

    Args:
        pipe: Pipeline that ``attach`` accepts, on its device.
        tpm: TPM or its folder. None uses the pipeline's own schedule.
        slots: Maximum number of images in one denoiser batch, at least 1.
        queue_limit: Maximum number of waiting requests.
        defaults: Default arguments of the pipeline call. A request and the TPM's training take precedence.
        overrides: Default arguments that take precedence over those of the TPM's training.
    """

    def __init__(
        self,
        pipe: Any,
        tpm: str | Path | Policy | None,
        *,
        slots: int,
        queue_limit: int,
        defaults: dict[str, Any] | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        defaults, overrides = defaults or {}, overrides or {}
        check_generates_images(pipe)
        policy = load_policy(tpm).to(pipe._execution_device) if isinstance(tpm, str | Path) else tpm
        trained = None if policy is None else attach(pipe, policy, defaults=overrides, pipeline_defaults=defaults)
        defaults = {**defaults, **overrides}
        self._shared = BatchedPipeline(pipe, slots, scheduler=self)
        self._adapter = RequestAdapter(self._shared, trained, defaults)
        self._truncation = TruncationChecker(pipe, defaults if trained is None else trained.defaults)
        self._previews = PreviewThread(self._shared)
        self._scheduler = Scheduler(queue_limit, slots, slots)
        self._jobs: dict[str, Job] = {}
        self._terminations: list[Termination] = []
        self._lock = threading.RLock()
        self._work_available, self._reaper_wakeup, self._job_closed = (
            threading.Condition(self._lock) for _ in range(3)
        )
        self._closing = False
        self._image_steps = 0
        targets = [("reaper", self._reap), *(("image", self._work) for _ in range(2 * slots + EXTRA_THREADS))]
        self._threads = [threading.Thread(target=run, name=f"tpdm-{name}", daemon=True) for name, run in targets]
        for thread in self._threads:
            thread.start()

    def submit(self, request: ImageRequest, on_event: Callable[[Event], None]) -> str:
        """See ``Engine``."""
        try:
            resolved = self._adapter.resolve(request)
        except RequestRefused:
            with self._lock:
                self._scheduler.refused += 1
            raise
        now, key = time.monotonic(), secrets.token_urlsafe(16)
        run = self._shared.run(lambda step: self._on_step(key, step), key)
        with self._lock:
            deadline = float("inf") if request.timeout is None else now + request.timeout
            self._scheduler.submit(key, resolved.batch_key, deadline)
            job = self._jobs[key] = Job(key, resolved, on_event, now, run)
            if request.previews:
                job.previews = self._previews.stream(request, lambda event: emit(job, event))
            self._work_available.notify()
            if request.timeout is not None:
                self._reaper_wakeup.notify()
        return key

    def cancel(self, request_id: str) -> bool:
        """See ``Engine``."""
        with self._lock:
            return self._terminate(request_id, "cancelled")

    def status(self) -> EngineStatus:
        """See ``Engine``."""
        with self._lock:
            return engine_status(self._scheduler, self._shared, self._image_steps)

    def drain(self, timeout: float) -> bool:
        """See ``Engine``."""
        with self._lock:
            self._scheduler.stop()
            return self._job_closed.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """See ``Engine``. May be called again."""
        with self._lock:
            self._scheduler.stop()
            self._closing = True
            stopped = EngineStopped("The server was stopped before the image was finished. Send the request again.")
            for key in self._scheduler.waiting_keys():
                self._scheduler.end(key, "failed")
                self._terminations.append(Termination(self._jobs[key], stopped, started=False))
            self._work_available.notify_all()
            self._reaper_wakeup.notify()
        self._shared.close(stopped)
        for thread in self._threads:
            thread.join()
        self._previews.close()

    def request_slot(self, slot: Slot) -> None:
        """See ``SlotScheduler``."""
        with self._lock:
            self._scheduler.request_slot(slot.key)
            self._admit()

    def release_slot(self, slot: Slot, finished: bool) -> None:
        """See ``SlotScheduler``."""
        with self._lock:
            self._scheduler.release_slot(slot.key, time.monotonic(), finished)
            self._admit(slot)
            self._work_available.notify()

    def _admit(self, released: Slot | None = None) -> None:
        jobs = [self._jobs[key] for key in self._scheduler.admit()]
        for job in jobs:
            job.admitted = time.monotonic()
        self._shared.denoiser.update([job.run.slot for job in jobs], released)

    def _work(self) -> None:
        """Makes one image after the other. There is a thread for each slot and for each request encoded ahead."""
        while True:
            with self._lock:
                self._work_available.wait_for(lambda: self._closing or self._scheduler.has_next)
                key = None if self._closing else self._scheduler.start(time.monotonic())
                if key is None:
                    return
                if self._scheduler.has_next:
                    self._work_available.notify()  # several requests are started at once, but one thread was woken
                job = self._jobs[key]
            self._make(job)

    def _make(self, job: Job) -> None:
        result = self._try(job)
        if isinstance(result, ImageDone):
            self._finish(job, "finished", result)
        else:
            clear_traceback_frames(result)  # the client may keep the event, and the error in it, for a while
            self._finish(job, "failed", Failed(result))

    def _try(self, job: Job) -> ImageDone | Exception:
        try:
            attached, arguments = self._adapter.prepare(job.resolved)
            warnings = self._truncation.warnings(job.request) + job.resolved.warnings
            return image_done(job, job.run(attached, **arguments), warnings)
        except (RequestRefused, RequestCancelled, DeadlineExceeded, EngineStopped) as error:
            return error
        except Exception as error:
            # Pipelines raise this for sizes that they cannot make.
            if isinstance(error, ValueError) and is_argument_error(error, self._shared.pipe):
                return RequestRefused(str(error))
            # Logged here, because the causes of an error are lost between processes.
            logger.error("request %s failed: %s", job.key, describe(error))
            return error

    def _on_step(self, key: str, step: StepInfo) -> None:
        with self._lock:
            job = self._jobs[key]
            self._image_steps += 1
        if job.previews is None:
            emit(job, StepEvent(step.index, step.t))
        else:
            job.previews.step(step)

    def _finish(self, job: Job, outcome: Outcome, event: ImageDone | Failed) -> None:
        """Ends a request that was started, and emits its last event."""
        with self._lock:
            ended = self._scheduler.end(job.key, outcome)
            self._work_available.notify()
        if ended == "cancelled" or ended == "expired":
            event = Failed(termination_error(job.request, ended))
        self._emit_final(job, event)

    def _emit_final(self, job: Job, event: ImageDone | Failed) -> None:
        previews = job.previews
        if previews is None:
            self._close_job(job, event)
        else:
            previews.end(lambda: self._close_job(job, previews.with_warning(event)))

    def _close_job(self, job: Job, event: ImageDone | Failed) -> None:
        emit(job, event)
        with self._lock:
            del self._jobs[job.key]  # after the event, so that a drained engine has emitted all of them
            self._job_closed.notify_all()

    def _terminate(self, key: str, reason: Literal["cancelled", "expired"]) -> bool:
        state = self._scheduler.abort(key, reason)
        if state is None:
            return False
        job = self._jobs[key]
        self._terminations.append(Termination(job, termination_error(job.request, reason), state != "waiting"))
        self._reaper_wakeup.notify()
        return True

    def _reap(self) -> None:
        """Ends requests that have expired or were cancelled."""
        while True:
            with self._lock:
                for key in self._scheduler.expired(time.monotonic()):
                    self._terminate(key, "expired")
                if not self._terminations:
                    if self._closing:
                        return
                    deadline = self._scheduler.next_deadline()
                    self._reaper_wakeup.wait(None if deadline == float("inf") else deadline - time.monotonic())
                terminations, self._terminations = self._terminations, []
            for termination in terminations:  # outside of the lock, because listeners are called
                if termination.started:
                    termination.job.run.abort(termination.error)
                else:
                    self._emit_final(termination.job, Failed(termination.error))
