"""GPUs that the replicas request from a cluster, with a fake Ray."""

import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest


def make(device="auto"):
    return device


@pytest.fixture
def replicas(monkeypatch):
    """The module on a stand-in for Ray, and what that was asked for."""
    asked = SimpleNamespace(resources={"CPU": 4.0}, options=None, bound=None)

    def deployment(cls, **options):
        asked.options = options
        return SimpleNamespace(bind=lambda *values: setattr(asked, "bound", values))

    names = ("ray", "ray.serve", "ray.exceptions", "ray.serve.exceptions")
    ray, serve, exceptions, serve_exceptions = (ModuleType(name) for name in names)
    vars(ray).update(serve=serve, is_initialized=lambda: False, init=lambda **_: None, shutdown=lambda: None)
    vars(ray).update(cluster_resources=lambda: asked.resources)
    vars(serve).update(deployment=deployment, start=lambda **_: None, run=lambda *_, **__: None, shutdown=lambda: None)
    vars(serve).update(get_app_handle=lambda name: SimpleNamespace(options=lambda **_: None))
    vars(exceptions).update(RayActorError=type("RayActorError", (Exception,), {}))
    vars(serve_exceptions).update(RayServeException=type("RayServeException", (Exception,), {}))
    for name, module in zip(names, (ray, serve, exceptions, serve_exceptions), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tpdm.serving.engine.ray_replicas", raising=False)
    import tpdm.serving.engine.ray_replicas as module

    yield module, asked
    sys.modules.pop("tpdm.serving.engine.ray_replicas")


@pytest.mark.parametrize(
    ("resources", "planned", "gpus", "device"),
    [
        ({"CPU": 4.0}, None, 0.0, "auto"),
        ({"CPU": 4.0, "GPU": 8.0}, None, 1.0, "cuda"),
        ({"CPU": 4.0, "GPU": 8.0}, 0.0, 0.0, "auto"),
        ({"CPU": 4.0}, 1.0, 1.0, "auto"),
    ],
)
def test_each_replica_gets_a_gpu_if_the_cluster_has_any(replicas, resources, planned, gpus, device):
    module, asked = replicas
    asked.resources = resources
    engine = module.start_replicas(module.ReplicaConfig(partial(make, device="auto"), 2, 2, 4, 8, planned))
    try:
        assert asked.options["ray_actor_options"]["num_gpus"] == gpus
        assert asked.bound[0]() == device
    finally:
        engine.close()
