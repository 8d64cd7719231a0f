"""Several engines behind one front: replicas through Ray Serve, on this machine or on a cluster.

The front stays an ordinary process with the limits, the page and the addresses of a single server. Behind it Ray keeps
the replicas alive, sends each request to a short queue, adds and removes replicas with the load, and replaces them
without losing what they have. A replica is a process with the same engine inside.
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
UPSCALE_SECONDS = 5.0  # of too much load before a replica is added; Ray's own 30 would let a queue build
AHEAD = 2  # requests that a replica has beyond its slots, so that no slot waits for the network


@dataclass(frozen=True)
class ReplicaConfig:
    """What replicas are started with.

    Attributes:
        make: makes the engine, in the process of the replica; takes ``device`` where ``gpus`` is None.
        replicas: at the start, and at least.
        most: that autoscaling may start; equal to ``replicas`` for a fixed number.
        slots: images in flight, of each replica.
        queue_limit: images that may wait, of all together.
        gpus: of each replica; None is one for each, and ``device="cuda"``, where the cluster has any.
        seconds: that a replica which is replaced has to finish what it has.
    """

    make: Callable[..., Engine]
    replicas: int
    most: int
    slots: int
    queue_limit: int
    gpus: float | None = 0.0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.most:
            raise ConfigError(
                f"got {self.replicas} to {self.most} replicas, expected at least 1 and no falling range; correct them."
            )


class EngineReplica:
    """The deployment: an engine whose events are streamed to the front.

    Args:
        make: of the plan.
        generation: counts restarts; Ray replaces replicas whose arguments differ.
    """

    def __init__(self, make: Callable[[], Engine], generation: int) -> None:
        self._engine = make()
        self._name = f"{generation}:{os.getpid()}"

    async def make(self, request: ImageRequest) -> AsyncGenerator[Event | ReplicaStatus, None]:
        """All events of one image; before the last, what this replica has done so far."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        try:
            key = self._engine.submit(request, lambda event: _post(loop, events, event))
        except TpdmError as error:  # as an event, because Ray wraps what is raised
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
        finally:  # where the front has cancelled, or is gone
            self._engine.cancel(key)

    def __del__(self) -> None:
        """What Ray calls when a replica has finished its last request."""
        self._engine.close()


def _post(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def start_replicas(plan: ReplicaConfig) -> RemoteEngine:
    """Starts the replicas and waits until they are ready; RAY_ADDRESS names a cluster, else one starts here."""
    mine = not ray.is_initialized()
    if mine:
        ray.init(logging_level="warning", log_to_driver=False, **_local(plan))
    plan = _settled(plan)
    serve.start(proxy_location="Disabled")  # the front is ours
    generation = 0

    def deploy() -> None:
        nonlocal generation
        generation += 1
        serve.run(_bind(plan, generation), name=APP, route_prefix=None)

    deploy()
    handle = serve.get_app_handle(APP).options(stream=True)  # by name: it outlives the replicas

    def stop() -> None:
        serve.shutdown()
        if mine:
            ray.shutdown()

    async def make(request: ImageRequest) -> AsyncGenerator[Event | ReplicaStatus, None]:
        response = handle.make.remote(request)
        try:
            async for event in response:
                yield event
        except (RayActorError, RayServeException) as error:
            lost = "got no picture, for the process that made it is gone; send the request again."
            raise EngineStopped(lost) from error
        finally:
            response.cancel()

    slots = plan.slots * plan.most
    return RemoteEngine(make, slots=slots, queue_limit=plan.queue_limit, restart=deploy, stop=stop)


def _local(plan: ReplicaConfig) -> dict[str, Any]:
    """Settings of a cluster that starts here. Replicas always find a place: torch shares the processors itself."""
    if "RAY_ADDRESS" in os.environ:
        return {}
    return {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, plan.most + 1)}


def _settled(plan: ReplicaConfig) -> ReplicaConfig:
    """The plan with its GPUs counted: those of the cluster, for the front may be on a machine without."""
    if plan.gpus is not None:
        return plan
    if not ray.cluster_resources().get("GPU"):
        return replace(plan, gpus=0.0)
    # Ray shows a replica nothing but its own GPU.
    return replace(plan, gpus=1.0, make=partial(plan.make, device="cuda"))


def _bind(plan: ReplicaConfig, generation: int) -> Any:
    options: dict[str, Any] = {
        # The rest waits in the front, where the loss of a replica does not touch it and any replica may take it.
        "max_ongoing_requests": plan.slots + AHEAD,
        "graceful_shutdown_timeout_s": plan.seconds,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": plan.gpus},
    }
    if plan.most > plan.replicas:
        options["autoscaling_config"] = {
            "min_replicas": plan.replicas,
            "max_replicas": plan.most,
            "target_ongoing_requests": plan.slots,
            "upscale_delay_s": UPSCALE_SECONDS,
        }
    else:
        options["num_replicas"] = plan.replicas
    return serve.deployment(EngineReplica, **options).bind(plan.make, generation)
