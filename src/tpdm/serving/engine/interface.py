"""Interface of the engine: requests, events, errors and the ``Engine`` protocol. Contains plain data and no tensors.

One request is for one image. An HTTP request for n images becomes n independent requests with seeds s, s + 1, ...
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
    """The queue is full.

    Attributes:
        retry_after: Estimated seconds until a request can be accepted.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(TpdmError):
    """The engine drains or has stopped and accepts no requests. Another replica may accept them."""


class RequestCancelled(TpdmError):
    """The client disconnected or cancelled the request."""


class DeadlineExceeded(TpdmError):
    """The image was not finished within the timeout of the request."""


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
    """The image has made a step.

    Attributes:
        step: Number of the step, from 1.
        time: Time after the step, in [0, 1).
        preview: Small image. None if none was requested for this step.
        again: Whether the step had an event before, without its preview.
    """

    step: int
    time: float
    preview: Image | None = None
    again: bool = False


@dataclass(frozen=True)
class ImageDone:
    """The image is finished.

    Attributes:
        image: RGB image.
        steps: Number of network evaluations (NFE).
        times: Times from 1.0 down to 0.0, one more than steps.
        queued_seconds: Seconds from submission to the first step.
        seconds: Seconds from submission to the image.
        warnings: Sentences for the client, for example about truncated texts or fields without effect.
        nsfw_content_detected: Whether the safety checker of the pipeline flagged the image, which it then makes black.
            None if there is no checker.
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
    """The request ended without an image.

    Attributes:
        error: ``RequestCancelled``, ``DeadlineExceeded``, ``EngineStopped``, or the error of the pipeline.
    """

    error: Exception


Event = StepEvent | ImageDone | Failed


@dataclass(frozen=True)
class EngineStatus:
    """Snapshot of the engine, for health checks and metrics. Counters start with the engine.

    Attributes:
        waiting: Number of requests in the queue.
        running: Number of images with a slot or being decoded.
        slots: Maximum number of images in one denoiser batch.
        queue_limit: Maximum number of requests in the queue.
        accepting: Whether requests are accepted. False while draining.
        finished: Number of finished images.
        cancelled: Number of cancelled requests.
        expired: Number of requests that exceeded their timeout.
        failed: Number of requests that ended with an error.
        refused: Number of requests that were not accepted.
        calls: Number of denoiser calls.
        rows: Number of rows in them. Guidance takes two per image and step.
        image_steps: Number of steps of all images.
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
    """Makes images. All methods may be called from any thread. All but ``drain`` and ``close`` return at once."""

    def submit(self, request: ImageRequest, on_event: Callable[[Event], None]) -> str:
        """Queues a request.

        Args:
            request: The request.
            on_event: Called from a thread of the engine with any number of ``StepEvent``, then with exactly one
                ``ImageDone`` or ``Failed``. It must return quickly and must not raise.

        Returns:
            The id of the request, which cannot be guessed.

        Raises:
            RequestRefused: The model can never serve the request.
            QueueFull: The queue is full.
            EngineStopped: The engine drains or has stopped.
        """

    def cancel(self, request_id: str) -> bool:
        """Ends a request at its next step. Returns False if it is unknown or has ended."""

    def status(self) -> EngineStatus:
        """Returns a snapshot of the engine."""

    def drain(self, timeout: float) -> bool:
        """Stops accepting requests and waits until all accepted ones have ended.

        Args:
            timeout: Maximum seconds to wait.

        Returns:
            Whether all requests have ended in time.
        """

    def close(self) -> None:
        """Fails the remaining requests with ``EngineStopped`` and ends the threads of the engine."""
