"""Replicas of the engine through Ray Serve, on this machine or on a cluster.

The HTTP process is the same as without replicas. Ray restarts replicas that die, routes each request to a replica with
a short queue, adds and removes replicas with the load, and replaces them after they have finished their requests. Each
replica is a process with an engine of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from tpdm.core.errors import ConfigError, TpdmError
from tpdm.serving.engine.interface import Engine, EngineStopped, Event, Failed, ImageDone, ImageRequest
from tpdm.serving.engine.remote import RemoteEngine, ReplicaStatus

APP = "tpdm"
UPSCALE_SECONDS = 5.0  # of high load before a replica is added; with the default of 30 the queue would grow
AHEAD = 2  # requests of a replica beyond its slots, so that no slot waits for the network


@dataclass(frozen=True)
class ReplicaConfig:
    """Configuration of the replicas.

    Attributes:
        make: Returns the engine, in the process of the replica. Gets ``device="cuda"`` if ``gpus`` is None and the
            cluster has GPUs.
        replicas: Minimum number of replicas, and their number at the start, >= 1.
        max_replicas: Maximum number of replicas. Equal to ``replicas`` for a fixed number.
        slots: Number of slots of each replica.
        queue_limit: Maximum number of waiting requests of all replicas.
        gpus: Number of GPUs of each replica. None uses one if the cluster has any.
        seconds: Maximum seconds for a replica to finish its requests when it is replaced.
    """

    make: Callable[..., Engine]
    replicas: int
    max_replicas: int
    slots: int
    queue_limit: int
    gpus: float | None = 0.0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.max_replicas:
            raise ConfigError(
                f"replicas is {self.replicas} and max_replicas is {self.max_replicas}. It must be 1 <= replicas "
                "<= max_replicas."
            )


class EngineReplica:
    """Ray deployment: an engine whose events are streamed to the HTTP process.

    Args:
        make: Returns the engine.
        generation: Number of restarts. Ray replaces replicas whose arguments have changed.
    """

    def __init__(self, make: Callable[[], Engine], generation: int) -> None:
        self._engine = make()
        self._name = f"{generation}:{os.getpid()}"

    async def make(self, request: ImageRequest) -> AsyncGenerator[Event | ReplicaStatus, None]:
        """Yields all events of one image, and the status of the replica before the last one."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        try:
            key = self._engine.submit(request, lambda event: _post(loop, events, event))
        except TpdmError as error:  # as an event, because Ray wraps exceptions
            yield Failed(error)
            return
        try:
            while True:
                event = await events.get()
                if isinstance(event, ImageDone | Failed):
                    yield ReplicaStatus(self._name, self._engine.status())
                    yield event
                    return
                yield event
        finally:  # if the HTTP process has cancelled or died
            self._engine.cancel(key)

    def __del__(self) -> None:
        """Called by Ray when the replica has finished its last request."""
        self._engine.close()


def _post(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def start_replicas(config: ReplicaConfig) -> RemoteEngine:
    """Starts the replicas and waits until they are ready.

    The environment variable ``RAY_ADDRESS`` names a cluster. Without it, a cluster is started on this machine.

    Args:
        config: Configuration of the replicas.
    """
    started_ray = not ray.is_initialized()
    if started_ray:
        ray.init(logging_level="warning", log_to_driver=False, **_local_cluster(config))
    config = _resolve_gpus(config)
    serve.start(proxy_location="Disabled")  # the HTTP process is not managed by Ray
    generation = 0

    def deploy() -> None:
        nonlocal generation
        generation += 1
        serve.run(_bind(config, generation), name=APP, route_prefix=None)

    deploy()
    handle = serve.get_app_handle(APP).options(
        stream=True
    )  # by name, so that it stays valid when replicas are replaced

    def stop() -> None:
        serve.shutdown()
        if started_ray:
            ray.shutdown()

    async def make(request: ImageRequest) -> AsyncGenerator[Event | ReplicaStatus, None]:
        response = handle.make.remote(request)
        try:
            async for event in response:
                yield event
        except (RayActorError, RayServeException) as error:
            lost = "The process that made the image has died. Send the request again."
            raise EngineStopped(lost) from error
        finally:
            response.cancel()

    slots = config.slots * config.max_replicas
    return RemoteEngine(make, slots=slots, queue_limit=config.queue_limit, restart=deploy, stop=stop)


def _local_cluster(config: ReplicaConfig) -> dict[str, Any]:
    """Settings of a cluster on this machine. It has a CPU for each replica, because torch shares the CPUs itself."""
    if "RAY_ADDRESS" in os.environ:
        return {}
    return {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, config.max_replicas + 1)}


def _resolve_gpus(config: ReplicaConfig) -> ReplicaConfig:
    """Sets ``gpus`` from the resources of the cluster, because this machine may have no GPU."""
    if config.gpus is not None:
        return config
    if not ray.cluster_resources().get("GPU"):
        return replace(config, gpus=0.0)
    # Ray makes only its own GPU visible to a replica.
    return replace(config, gpus=1.0, make=partial(config.make, device="cuda"))


def _bind(config: ReplicaConfig, generation: int) -> Any:
    options: dict[str, Any] = {
        # The other requests wait in the HTTP process: the loss of a replica does not affect them.
        "max_ongoing_requests": config.slots + AHEAD,
        "graceful_shutdown_timeout_s": config.seconds,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": config.gpus},
    }
    if config.max_replicas > config.replicas:
        options["autoscaling_config"] = {
            "min_replicas": config.replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.slots,
            "upscale_delay_s": UPSCALE_SECONDS,
        }
    else:
        options["num_replicas"] = config.replicas
    return serve.deployment(EngineReplica, **options).bind(config.make, generation)
