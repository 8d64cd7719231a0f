"""An engine without a network that makes images of one color, computed from the request."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from PIL import Image

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
    RequestRefused,
    StepEvent,
)
from tpdm.serving.engine.previews import PreviewPlan

ENDLESS = 10_000
OVERLONG = "prompt: an encoder reads 32 tokens and ignores the rest"
CHECKED = {"flagged": True, "harmless": False}  # what a safety checker says of prompts that begin so


@dataclass(frozen=True)
class Landed:
    index: int
    t: float


@dataclass
class Running:
    request: ImageRequest
    on_event: Callable[[Event], None]
    submitted: float
    steps: int = 0
    started: float = 0.0
    error: Exception | None = None
    plan: PreviewPlan | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))


def picture(request: ImageRequest) -> Image.Image:
    size = (request.width or 64, request.height or 64)
    color = tuple((hash_of(request) >> shift) % 256 for shift in (0, 8, 16))
    return Image.new("RGB", size, color)


def hash_of(request: ImageRequest) -> int:
    return sum(map(ord, request.prompt)) * 7919 + request.seed * 104729


def steps_of(request: ImageRequest) -> int:
    if "endless" in request.prompt:
        return ENDLESS
    return request.num_inference_steps or min(3 + hash_of(request) % 5, request.max_steps or ENDLESS)


class FakeEngine:
    """One thread makes one step of every running image each ``pace`` seconds."""

    def __init__(self, slots: int = 2, queue_limit: int = 4, pace: float = 0.001):
        self.pace, self.requests = pace, []
        self._status = EngineStatus(0, 0, slots, queue_limit, True, 0, 0, 0, 0, 0, 0, 0, 0)
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request, on_event):
        with self._changed:
            if not self._status.accepting:
                self._count("refused")
                raise EngineStopped("the server is stopping; ask another one")
            if "refuse" in request.prompt:
                self._count("refused")
                raise RequestRefused("got an option that the pipeline lacks; leave it out")
            if len(self._waiting) >= self._status.queue_limit + self._status.slots - len(self._running):
                self._count("refused")
                raise QueueFull("the queue is full; try again later", retry_after=1.2)
            one = Running(request, on_event, time.monotonic())
            one.plan = None if request.previews in ("every", 0) else PreviewPlan(request.previews)
            self.requests.append(request)
            self._waiting.append(one)
            self._changed.notify_all()
        return one.id

    def cancel(self, request_id):
        with self._changed:
            for one in [*self._waiting, *self._running]:
                if one.id == request_id and one.error is None:
                    one.error = RequestCancelled("the request was cancelled")
                    return True
        return False

    def status(self):
        with self._changed:
            return replace(self._status, waiting=len(self._waiting), running=len(self._running))

    def drain(self, timeout):
        end = time.monotonic() + timeout
        with self._changed:
            self._status = replace(self._status, accepting=False)
            return self._changed.wait_for(lambda: not self._waiting and not self._running, end - time.monotonic())

    def close(self):
        with self._changed:
            self._closed = True
            self._status = replace(self._status, accepting=False)
            for one in [*self._waiting, *self._running]:
                one.error = EngineStopped("the server has stopped; ask another one")
            self._changed.notify_all()
        self._thread.join(5)

    def _count(self, name, by=1):
        self._status = replace(self._status, **{name: getattr(self._status, name) + by})

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._closed)
                if self._closed and not self._waiting and not self._running:
                    return
                while self._waiting and len(self._running) < self._status.slots:
                    self._running.append(self._waiting.popleft())
                    self._running[-1].started = time.monotonic()
                now = list(self._running)
            time.sleep(self.pace)
            for one in now:
                self._step(one)

    def _step(self, one):
        total = steps_of(one.request)
        late = one.request.timeout is not None and time.monotonic() - one.submitted > one.request.timeout
        with self._changed:
            if late and one.error is None:
                one.error = DeadlineExceeded("the picture was not finished in its time; try again later")
            if "explode" in one.request.prompt and one.steps == 1:
                one.error = ZeroDivisionError(f"cannot draw {one.request.prompt}")
        if one.error is not None:
            kinds = {RequestCancelled: "cancelled", DeadlineExceeded: "expired"}
            self._end(one, Failed(one.error), kinds.get(type(one.error), "failed"))
            return
        one.steps += 1
        with self._changed:
            self._count("image_steps")
            self._count("rows")
            self._count("calls")
        self._tell(one, Landed(one.steps, 1 - one.steps / total))
        if one.steps == total:
            times = tuple(1 - i / total for i in range(total + 1))
            seconds = time.monotonic() - one.submitted
            warnings = (OVERLONG,) if "overlong" in one.request.prompt else ()
            flagged = CHECKED.get(one.request.prompt.partition(" ")[0])
            done = ImageDone(
                picture(one.request), total, times, one.started - one.submitted, seconds, warnings, flagged
            )
            self._end(one, done, "finished")

    def _tell(self, one, landed):
        every = [landed] if one.request.previews == "every" else []
        shown = every if one.plan is None else one.plan.shown_at(landed)
        for step in shown:
            one.on_event(StepEvent(step.index, step.t, picture(one.request), again=step is not landed))
        if landed not in shown:
            one.on_event(StepEvent(landed.index, landed.t))

    def _end(self, one, event, counter):
        one.on_event(event)
        with self._changed:
            self._count(counter)
            self._running.remove(one)
            self._changed.notify_all()
