"""What the engine and its front (HTTP, the page, Ray, a benchmark) say to each other: plain data, no torch.

One request is ONE image. A call for n images is n requests with seeds s, s + 1, ... that know nothing of each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

from tpdm.core.errors import TpdmError


class RequestRefused(TpdmError):
    """The request can never be served: it contradicts itself, or asks for something that the pipeline does not have.

    Attributes:
        field: Field of ``ImageRequest`` that is wrong. None if the error concerns the model.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


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
    """Request for one image. If a field is None, the engine uses the default of the TPM or of the pipeline.

    Attributes:
        prompt: Text of the image, not blank.
        seed: Seed of the initial noise, in [0, 2^63).
        negative_prompt: Text that guidance moves away from. Only for pipelines that read one.
        width: Width in pixels, >= 1.
        height: Height in pixels, >= 1.
        guidance_scale: Scale of classifier-free guidance, or the scale input of guidance-distilled models, >= 0. For
            Qwen-Image it is another name of ``true_cfg_scale``.
        true_cfg_scale: Scale of guidance against the negative prompt, for pipelines that have this argument (FLUX.1,
            Qwen-Image), >= 0.
        gamma: Discount of a step in (0, 1), for a gamma-conditioned TPM. Excludes ``quality``.
        quality: Quality setting in [0, 1], which the calibration of the TPM maps to gamma. Excludes ``gamma``.
        max_steps: Maximum number of steps of the TPM, >= 1.
        num_inference_steps: Number of steps of the pipeline's own schedule, which is then used instead of the TPM, in
            [1, 10000]. Excludes ``gamma``, ``quality`` and ``max_steps``.
        previews: Number of steps whose event has a preview. An image with fewer steps has one at every step. "every"
            adds one to each step that the reader keeps up with.
        timeout: Seconds from submission to the image, > 0.

    Raises:
        RequestRefused: A value is outside its range, or two fields exclude each other.
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
    num_inference_steps: int | None = None
    previews: int | Literal["every"] = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise RequestRefused("prompt is empty. Describe the image in words.", "prompt")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                limit = f"at least {low}" if value < low else f"at most {high}"
                raise RequestRefused(f"{name} is {value}. It must be {limit}.", name)
        if self.timeout is not None and not self.timeout > 0:
            raise RequestRefused(f"timeout is {self.timeout}. It must be a positive number of seconds.", "timeout")
        for name, other in _EXCLUSIVE:
            if getattr(self, name) is not None and getattr(self, other) is not None:
                raise RequestRefused(f"{name} and {other} exclude each other. Leave one of them out.", name)


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "width": (1, float("inf")),
    "height": (1, float("inf")),
    "max_steps": (1, float("inf")),
    "num_inference_steps": (1, 10_000),  # a fixed schedule is made in full before the first step
    "guidance_scale": (0, sys.float_info.max),
    "true_cfg_scale": (0, sys.float_info.max),
}
_EXCLUSIVE = (
    ("gamma", "quality"),
    ("max_steps", "num_inference_steps"),
    ("gamma", "num_inference_steps"),
    ("quality", "num_inference_steps"),
)


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
