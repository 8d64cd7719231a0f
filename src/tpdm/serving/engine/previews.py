"""Step events with previews, in order and from one thread.

If previews of every step are requested, late ones are skipped.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from tpdm.pipelines.vae import decode_preview
from tpdm.sampling.batching.pipeline import BatchedPipeline, StepInfo
from tpdm.serving.engine.interface import Failed, ImageDone, ImageRequest, StepEvent
from tpdm.serving.process import describe

logger = logging.getLogger("tpdm.serving")


class PreviewThread:
    """Thread that decodes previews and emits the events of all requests with previews.

    Args:
        shared: Pipeline whose decoder makes the previews. It also decodes the finished images.
    """

    def __init__(self, shared: BatchedPipeline) -> None:
        self._pipe = shared.clone_pipe()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tpdm-previews", daemon=True)
        self._thread.start()

    def stream(self, request: ImageRequest, on_step: Callable[[StepEvent], None]) -> PreviewStream:
        """Returns the stream of one request.

        Args:
            request: The request, with the size of the image and the number of previews.
            on_step: Called with each step event.
        """
        return PreviewStream(self, request, on_step)

    def run_later(self, task: Callable[[], None]) -> None:
        """Runs a task after all earlier ones."""
        self._tasks.put(task)

    def decode(self, request: ImageRequest, step: StepInfo) -> StepEvent:
        """Returns the event of a step with its preview, or without one if decoding fails."""
        image = None
        try:
            image = decode_preview(self._pipe, step.estimate(), request.width, request.height)
        except Exception as error:  # the image must not fail with its preview
            logger.error("a preview failed: %s", describe(error))
        return StepEvent(step.index, step.t, image)

    def close(self) -> None:
        """Ends the thread after the last task. Blocks until then."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


class PreviewStream:
    """Step events of one request. Made by ``PreviewThread.stream``.

    If previews of every step are requested, only the latest step gets one.
    """

    def __init__(self, thread: PreviewThread, request: ImageRequest, on_step: Callable[[StepEvent], None]) -> None:
        self._thread, self._request, self._on_step = thread, request, on_step
        self._plan = None if request.previews == "every" else PreviewPlan[StepInfo](request.previews)
        self._latest: float = 0
        self._missing = 0

    def step(self, step: StepInfo) -> None:
        """Queues the event of a step."""
        self._latest = step.index
        self._thread.run_later(lambda: self._emit(step))

    def end(self, emit_final: Callable[[], None]) -> None:
        """Queues the last event. No step follows."""
        self._latest = float("inf")
        self._thread.run_later(emit_final)

    def with_warning(self, event: ImageDone | Failed) -> ImageDone | Failed:
        """Returns the last event, with a warning if a number of previews was requested and some could not be made."""
        if self._plan is None or not self._missing or isinstance(event, Failed):
            return event
        warning = f"partial_images: {self._missing} previews could not be made from the latents of this pipeline"
        return replace(event, warnings=(*event.warnings, warning))

    def _emit(self, step: StepInfo) -> None:
        latest = [step] if step.index >= self._latest else []
        shown = latest if self._plan is None else self._plan.shown_at(step)
        for one in shown:
            event = self._thread.decode(self._request, one)
            self._missing += event.preview is None
            if event.preview is not None or one is step:
                self._on_step(replace(event, again=one is not step))
        if step not in shown:
            self._on_step(StepEvent(step.index, step.t))


class HasTime(Protocol):
    """A step of an image."""

    @property
    def t(self) -> float:
        """Time after the step, 0 at the end."""


Step = TypeVar("Step", bound=HasTime)


class PreviewPlan(Generic[Step]):
    """Chooses the steps of one image.

    N previews are due at the times N/(N+1), ..., 1/(N+1). The first step that reaches such a time gets a preview. A
    step gets one preview at most, so a second one that is due goes to the next step. Previews that are still due at
    the end go to the latest steps without one. An image of N or more steps therefore has exactly N previews.

    Args:
        number: Number of previews N, at least 1.
    """

    def __init__(self, number: int) -> None:
        self._number, self._shown = number, 0
        self._skipped: deque[Step] = deque(maxlen=number)  # the latest steps without a preview

    def shown_at(self, step: Step) -> list[Step]:
        """Returns the steps that get a preview now, in their order: ``step``, none, or at the end also earlier ones."""
        if step.t > 0:
            due = sum(step.t * (self._number + 1) <= k for k in range(1, self._number + 1)) - self._shown
            chosen = [step] if due > 0 else []
        else:
            due = self._number - self._shown
            chosen = [*self._skipped, step][-due:] if due > 0 else []
        if not chosen:
            self._skipped.append(step)
        self._shown += len(chosen)
        return chosen
