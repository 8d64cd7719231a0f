"""Metrics for Prometheus: the status of the engine, and histograms of the answers."""

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
    "tpdm_queue_limit": ("Maximum number of requests in the queue.", "queue_limit"),
    "tpdm_slots": ("Maximum number of images with a slot.", "slots"),
    "tpdm_slots_in_use": ("Images with a slot or being decoded.", "running"),
    "tpdm_accepting": ("1, or 0 while draining.", "accepting"),
}
COUNTERS = {
    "tpdm_images_finished": ("Finished images.", "finished"),
    "tpdm_images_cancelled": ("Cancelled images.", "cancelled"),
    "tpdm_images_expired": ("Images that exceeded the timeout.", "expired"),
    "tpdm_images_failed": ("Images that ended with an error.", "failed"),
    "tpdm_images_refused": ("Images that were not accepted.", "refused"),
    "tpdm_denoiser_calls": ("Denoiser calls.", "calls"),
    "tpdm_denoiser_rows": ("Rows of the denoiser calls.", "rows"),
    "tpdm_image_steps_made": ("Steps of all images.", "image_steps"),
}


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status()
        for name, (help_text, field) in GAUGES.items():
            yield GaugeMetricFamily(name, help_text, value=float(getattr(status, field)))
        for name, (help_text, field) in COUNTERS.items():
            yield CounterMetricFamily(name, help_text, value=float(getattr(status, field)))


class Metrics:
    """Metrics of one server, in a registry of its own.

    Args:
        engine: Engine whose status is reported.
    """

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
            "tpdm_http_responses", "Responses by route and status.", ("route", "status"), registry=self._registry
        )

    def image(self, done: ImageDone) -> None:
        """Records a finished image."""
        self._steps.observe(done.steps)
        self._queued.observe(done.queued_seconds)
        self._seconds.observe(done.seconds)

    def response(self, route: str, status: int) -> None:
        """Counts a response.

        Args:
            route: Template of the route, never the path that a client sent.
            status: HTTP status.
        """
        self._responses.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """Returns all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
