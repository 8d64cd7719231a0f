"""What ``/metrics`` tells Prometheus: the engine as it is now, and histograms of what was answered."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tpdm.serving.engine.interface import Engine, ImageDone

STEPS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 36, 50, 100)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

GAUGES = {
    "tpdm_queue_waiting": ("Requests in the queue.", "waiting"),
    "tpdm_queue_limit": ("Requests that may wait.", "queue_limit"),
    "tpdm_slots": ("Images that may be in flight.", "slots"),
    "tpdm_slots_in_use": ("Images in flight.", "running"),
    "tpdm_accepting": ("1, or 0 while draining.", "accepting"),
}
COUNTERS = {
    "tpdm_images_finished": ("Images made.", "finished"),
    "tpdm_images_cancelled": ("Images whose client left or asked for an end.", "cancelled"),
    "tpdm_images_expired": ("Images that were not finished within their time.", "expired"),
    "tpdm_images_failed": ("Images that ended by an error.", "failed"),
    "tpdm_images_refused": ("Images that were not admitted.", "refused"),
    "tpdm_denoiser_calls": ("Calls of the denoiser.", "calls"),
    "tpdm_denoiser_rows": ("Rows computed in them.", "rows"),
    "tpdm_image_steps_made": ("Steps made by images.", "image_steps"),
}


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status()
        for name, (words, field) in GAUGES.items():
            yield GaugeMetricFamily(name, words, value=float(getattr(status, field)))
        for name, (words, field) in COUNTERS.items():
            yield CounterMetricFamily(name, words, value=float(getattr(status, field)))


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self._steps = Histogram("tpdm_image_steps", "Steps per image.", buckets=STEPS, registry=self._registry)
        self._queued = Histogram(
            "tpdm_queue_seconds", "From submission to the first step.", buckets=SECONDS, registry=self._registry
        )
        self._seconds = Histogram(
            "tpdm_image_seconds", "From submission to the image.", buckets=SECONDS, registry=self._registry
        )
        self._responses = Counter(
            "tpdm_http_responses", "Answers by route and status.", ("route", "status"), registry=self._registry
        )

    def image(self, done: ImageDone) -> None:
        """Counts a finished image."""
        self._steps.observe(done.steps)
        self._queued.observe(done.queued_seconds)
        self._seconds.observe(done.seconds)

    def response(self, route: str, status: int) -> None:
        """Counts an answer; ``route`` is a template and never what a client wrote."""
        self._responses.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
