"""What the engine and its front (HTTP, the page, Ray, a benchmark) say to each other: plain data, no torch.

One request is ONE image. A call for n images is n requests with seeds s, s + 1, ... that know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

from tpdm.core.errors import TpdmError


class RequestRefused(TpdmError):
    """The request cannot be served as it stands: an option the pipeline lacks, a limit it exceeds."""


class QueueFull(TpdmError):
    """No room. ``retry_after`` is the engine's estimate of the seconds until there is some."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(TpdmError):
    """The engine drains or has stopped and takes nothing new; another replica may."""


class RequestCancelled(TpdmError):
    """The client left, or asked for an end."""


class DeadlineExceeded(TpdmError):
    """The request was not finished within its time."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to make. What is None is left to the pipeline, the TPM or the engine.

    Attributes:
        prompt: not empty.
        seed: of the initial noise, >= 0.
        negative_prompt: for pipelines that read one, where they guide.
        width: pixels.
        height: pixels.
        guidance_scale: w of classifier-free guidance, or the scale that guidance-distilled models are told, >= 0; for
            Qwen-Image it is ``true_cfg_scale``.
        true_cfg_scale: w of pipelines that call it so (FLUX.1, Qwen-Image), against the negative prompt or the empty
            text, >= 0.
        gamma: discount of a step in (0, 1), for a TPM trained with the dial; excludes ``quality``.
        quality: the dial in [0, 1] as its calibration maps it to gamma; excludes ``gamma``.
        max_steps: cap on the steps of the TPM, >= 1.
        fixed_steps: the pipeline's own schedule with so many steps instead of the TPM.
        previews: how many steps are told with a small picture: exactly so many of an image that takes so many steps,
            or every one that its reader keeps up with.
        timeout: seconds from submission to the image.
    """

    prompt: str
    seed: int
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    gamma: float | None = None
    quality: float | None = None
    max_steps: int | None = None
    fixed_steps: int | None = None
    previews: int | Literal["every"] = 0
    timeout: float | None = None


@dataclass(frozen=True)
class StepEvent:
    """One step was made.

    Attributes:
        step: its number, from 1.
        time: where it landed.
        preview: a small picture, if asked for.
        again: the step was told before without its picture.
    """

    step: int
    time: float
    preview: Image | None = None
    again: bool = False


@dataclass(frozen=True)
class ImageDone:
    """The finished image.

    Attributes:
        image: RGB.
        steps: network evaluations.
        times: from the start down to 0.0, one more than steps.
        queued_seconds: from submission to the first step.
        seconds: from submission to the image.
        warnings: what the client should know, in sentences: texts that are not read to their end, or have no effect.
        nsfw_content_detected: whether the pipeline's safety checker flagged the image, which it then blacks out; None
            where there is no checker.
    """

    image: Image
    steps: int
    times: tuple[float, ...]
    queued_seconds: float
    seconds: float
    warnings: tuple[str, ...] = ()
    nsfw_content_detected: bool | None = None


@dataclass(frozen=True)
class Failed:
    """No image will come: ``RequestCancelled``, ``DeadlineExceeded``, ``EngineStopped`` or what went wrong."""

    error: Exception


Event = StepEvent | ImageDone | Failed


@dataclass(frozen=True)
class EngineStatus:
    """A moment of the engine, for health checks and metrics.

    Attributes:
        waiting: requests in the queue.
        running: images in flight.
        slots: images that may be in flight.
        queue_limit: requests that may wait.
        accepting: False while draining.
        finished: images made since the start.
        cancelled: requests that ended by cancellation.
        expired: requests that ended by their deadline.
        failed: requests that ended by an error.
        refused: requests that were not admitted.
        calls: denoiser calls made.
        rows: denoiser rows computed in them (guidance takes two per image and step).
        image_steps: steps made by images, of all requests.
    """

    waiting: int
    running: int
    slots: int
    queue_limit: int
    accepting: bool
    finished: int
    cancelled: int
    expired: int
    failed: int
    refused: int
    calls: int
    rows: int
    image_steps: int


class Engine(Protocol):
    """Makes images of requests. All methods may be called from any thread and return at once, ``drain`` excepted."""

    def submit(self, request: ImageRequest, on_event: Callable[[Event], None]) -> str:
        """Queues a request and returns its unguessable id.

        ``on_event`` is called from a thread of the engine: any number of ``StepEvent``, then exactly one ``ImageDone``
        or ``Failed``. It must return quickly and not raise.

        Raises:
            RequestRefused: it can never be served.
            QueueFull: no room.
            EngineStopped: draining.
        """

    def cancel(self, request_id: str) -> bool:
        """Ends a request at its next step; False if it is unknown or already over."""

    def status(self) -> EngineStatus:
        """How busy the engine is."""

    def drain(self, timeout: float) -> bool:
        """Takes nothing new and waits for what was accepted; True when all of it was answered within ``timeout``."""

    def close(self) -> None:
        """Fails what is left with ``EngineStopped`` and ends the engine's threads."""
