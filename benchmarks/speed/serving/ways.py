"""Arrivals, and ways to serve them: one at a time, in static batches, and at the level of the step."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np

from tpdm.core.types import Features
from tpdm.pipelines import attach as attach_module
from tpdm.pipelines.active_rows import ActiveRows
from tpdm.pipelines.feature_hooks import FeatureHooks
from tpdm.pipelines.registry import bind_arguments
from tpdm.serving.engine.interface import Failed, ImageDone, ImageRequest


@dataclass(frozen=True)
class Arrival:
    """A request and its time of arrival, in seconds from the start."""

    request: ImageRequest
    at: float


def at_once(requests):
    """A saturated server: every request arrives at the start."""
    return [Arrival(request, 0.0) for request in requests]


def poisson(requests, rate, seed):
    """``rate`` requests per second, independent of each other."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(requests))
    return [Arrival(request, float(at)) for request, at in zip(requests, np.cumsum(gaps), strict=True)]


def bursts(requests, rate, size, seed):
    """The same mean rate in groups of ``size`` that arrive together, at Poisson times."""
    groups = -(-len(requests) // size)
    at = np.cumsum(np.random.default_rng(seed).exponential(size / rate, groups))
    return [Arrival(request, float(at[i // size])) for i, request in enumerate(requests)]


@dataclass(frozen=True)
class Served:
    """The outcome of a list of arrivals: seconds from arrival to image, steps, and what was computed."""

    latency: list[float]
    steps: list[int]
    rows: int
    calls: int
    seconds: float
    processor: float  # seconds of the processor, all threads


class _AllRows(ActiveRows):
    """Computes finished rows to the end of the batch, as static batches do."""

    def _before(self, denoiser, args, kwargs):
        images, active = self._read_active()
        _FullTaps.images, _FullTaps.active = images, active
        self.rows_per_call.append(len(bind_arguments(denoiser, args, kwargs).arguments[self.entry.sample]))
        self._cut = None


class _FullTaps(FeatureHooks):
    """Returns the features of active images from a call that computed all images."""

    images, active = 0, ()

    def features(self, images):
        full = super().features(self.images)
        parts = (full.first_BDHW, full.last_BDHW, full.temb_BE)
        return Features(*(part[list(self.active)] for part in parts))


@contextmanager
def all_rows_computed():
    """Inside it, ``attach`` computes finished rows, too. For pipelines with one denoiser call per step."""
    with (
        mock.patch("tpdm.pipelines.driving.ActiveRows", _AllRows),
        mock.patch.object(attach_module, "FeatureHooks", _FullTaps),
    ):
        yield


def serve_batches(draw, arrivals, batch):
    """Static batches: takes what has arrived, up to ``batch``, and answers all of it when the slowest is done.

    Args:
        draw: (requests) -> an output with steps of each image and nfe_rows.
        arrivals: in the order of their times.
        batch: images of a call at most; 1 is one at a time.
    """
    latency, steps, rows, calls = [], [], 0, 0
    start, first, busy = time.perf_counter(), 0, time.process_time()
    while first < len(arrivals):
        now = time.perf_counter() - start
        if arrivals[first].at > now:
            time.sleep(arrivals[first].at - now)
            continue
        part = [a for a in arrivals[first : first + batch] if a.at <= now]
        output = draw([a.request for a in part])
        done = time.perf_counter() - start
        latency += [done - a.at for a in part]
        steps += output.steps
        rows += output.nfe_rows
        calls += max(output.steps)
        first += len(part)
    return Served(latency, steps, rows, calls, time.perf_counter() - start, time.process_time() - busy)


def serve_steps(engine, arrivals):
    """Step-level batches: the engine gets every request when it arrives."""
    before, start, busy = engine.status(), time.perf_counter(), time.process_time()
    ends, left, all_done = {}, [len(arrivals)], threading.Event()
    lock = threading.Lock()

    def listener(number):
        def listen(event):
            if not isinstance(event, ImageDone | Failed):
                return
            with lock:
                ends[number] = (time.perf_counter() - start, event)
                left[0] -= 1
                if not left[0]:
                    all_done.set()

        return listen

    for number, arrival in enumerate(arrivals):
        wait = arrival.at - (time.perf_counter() - start)
        if wait > 0:
            time.sleep(wait)
        engine.submit(arrival.request, listener(number))
    all_done.wait()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    failed = [event.error for _, event in ends.values() if isinstance(event, Failed)]
    if failed:
        raise failed[0]
    after = engine.status()
    return Served(
        [ends[i][0] - arrivals[i].at for i in range(len(arrivals))],
        [ends[i][1].steps for i in range(len(arrivals))],
        after.rows - before.rows,
        after.calls - before.calls,
        seconds,
        busy,
    )
