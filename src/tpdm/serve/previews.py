"""Events of requests that want previews: in order, from one thread, which skips a picture rather than fall behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from tpdm.pipelines.continuous import ContinuousPipeline, Landing
from tpdm.pipelines.preview import decode_preview
from tpdm.serve.logs import describe
from tpdm.serve.requests import ImageRequest, StepEvent

log = logging.getLogger("tpdm.serve")


class PreviewThread:
    """Says events one after the other; a step that is not the latest any more gets no picture.

    Args:
        shared: whose decoder makes the pictures, together or in turns with those of finished images.
    """

    def __init__(self, shared: ContinuousPipeline) -> None:
        self._pipe = shared.pipe_for()
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

    def paint(self, request: ImageRequest, landing: Landing) -> StepEvent:
        """The event of a step with its picture, or without one if it cannot be made."""
        image = None
        try:
            image = decode_preview(self._pipe, landing.estimate(), request.width, request.height)
        except Exception as error:  # no preview is worth an image
            log.error("a preview failed: %s", describe(error))
        return StepEvent(landing.index, landing.t, image)

    def close(self) -> None:
        """Ends the thread after the last task."""
        self._line.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (task := self._line.get()) is not None:
            task()


class PreviewStream:
    """Steps of one request on their way to its listener; made by ``PreviewThread.stream``."""

    def __init__(self, thread: PreviewThread, request: ImageRequest, say: Callable[[StepEvent], None]) -> None:
        self._thread, self._request, self._say = thread, request, say
        self._latest: float = 0

    def step(self, landing: Landing) -> None:
        """A step was made."""
        self._latest = landing.index
        self._thread.do(lambda: self._tell(landing))

    def end(self, say_last: Callable[[], None]) -> None:
        """No step comes any more."""
        self._latest = float("inf")
        self._thread.do(say_last)

    def _tell(self, landing: Landing) -> None:
        if landing.index < self._latest:
            self._say(StepEvent(landing.index, landing.t))
        else:
            self._say(self._thread.paint(self._request, landing))
