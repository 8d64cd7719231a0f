"""Events of requests that want previews: in order, from one thread. Of every step's previews it skips what is late."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue

from tpdm.pipelines.vae import decode_preview
from tpdm.sampling.batching.pipeline import BatchedPipeline, StepInfo
from tpdm.serving.engine.interface import Failed, ImageDone, ImageRequest, StepEvent
from tpdm.serving.engine.preview_plan import PreviewPlan
from tpdm.serving.process import describe

logger = logging.getLogger("tpdm.serving")


class PreviewThread:
    """Says events one after the other.

    Args:
        shared: whose decoder makes the pictures, together or in turns with those of finished images.
    """

    def __init__(self, shared: BatchedPipeline) -> None:
        self._pipe = shared.clone_pipe()
        self._line: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tpdm-previews", daemon=True)
        self._thread.start()

    def stream(self, request: ImageRequest, say: Callable[[StepEvent], None]) -> PreviewStream:
        """The events of one request.

        Args:
            request: whose size counts.
            say: gets the steps.
        """
        return PreviewStream(self, request, say)

    def do(self, task: Callable[[], None]) -> None:
        """Runs a task after all that were given before."""
        self._line.put(task)

    def paint(self, request: ImageRequest, landing: StepInfo) -> StepEvent:
        """The event of a step with its picture, or without one if it cannot be made."""
        image = None
        try:
            image = decode_preview(self._pipe, landing.estimate(), request.width, request.height)
        except Exception as error:  # no preview is worth an image
            logger.error("a preview failed: %s", describe(error))
        return StepEvent(landing.index, landing.t, image)

    def close(self) -> None:
        """Ends the thread after the last task."""
        self._line.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (task := self._line.get()) is not None:
            task()


class PreviewStream:
    """Steps of one request on their way to its listener; made by ``PreviewThread.stream``.

    Where a picture of every step was asked for, a step that is not the latest any more gets none.
    """

    def __init__(self, thread: PreviewThread, request: ImageRequest, say: Callable[[StepEvent], None]) -> None:
        self._thread, self._request, self._say = thread, request, say
        wanted = request.previews
        self._plan = None if wanted == "every" else PreviewPlan[StepInfo](wanted)
        self._latest: float = 0
        self._missing = 0

    def step(self, landing: StepInfo) -> None:
        """A step was made."""
        self._latest = landing.index
        self._thread.do(lambda: self._tell(landing))

    def end(self, say_last: Callable[[], None]) -> None:
        """No step comes any more."""
        self._latest = float("inf")
        self._thread.do(say_last)

    def noted(self, last: ImageDone | Failed) -> ImageDone | Failed:
        """The last event, with a warning where pictures that were asked for by number could not be made."""
        if self._plan is None or not self._missing or isinstance(last, Failed):
            return last
        words = f"partial_images: {self._missing} previews could not be made of this pipeline's latents"
        return replace(last, warnings=(*last.warnings, words))

    def _tell(self, landing: StepInfo) -> None:
        if self._plan is None:
            shown = [landing] if landing.index >= self._latest else []
        else:
            shown = self._plan.shown_at(landing)
        for one in shown:
            event = self._thread.paint(self._request, one)
            self._missing += event.preview is None
            if event.preview is not None or one is landing:
                self._say(replace(event, again=one is not landing))
        if landing not in shown:
            self._say(StepEvent(landing.index, landing.t))
