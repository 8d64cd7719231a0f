"""``tpdm serve``: serves images over HTTP, made in this process or by Ray replicas."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpdm.cli.arguments import in_url, require_extra

if TYPE_CHECKING:
    from socket import socket

    from tpdm.serving.engine.engine import PipelineEngine
    from tpdm.serving.engine.remote import RemoteEngine
    from tpdm.serving.http.settings import ModelCard, Settings

TRAINED = Path("runs/demo/train/best")


class ResponseFormat(str, Enum):
    """Format of images in a response."""

    b64_json = "b64_json"
    url = "url"
    both = "both"


def serve(
    backbone: Annotated[str, typer.Option(help="tinyworld, a diffusers folder or a hub id")] = "tinyworld",
    tpm: Annotated[
        str | None, typer.Option(help="Folder or hub id of a TPM. Without it, the pipeline's own schedule runs")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on")] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="Images in flight at once, per replica")] = 8,
    queue_limit: Annotated[int, typer.Option(min=0, help="Maximum number of queued images")] = 64,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="dtype of the pipeline: fp32, bf16 or fp16")] = "fp32",
    guidance_scale: Annotated[
        float | None,
        typer.Option(min=0, help="Guidance scale of requests without one. Default: that of the TPM or pipeline"),
    ] = None,
    true_cfg_scale: Annotated[
        float | None,
        typer.Option(min=0, help="Classifier-free guidance scale (FLUX.1, Qwen-Image) of requests without one"),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of the weight files, such as fp16")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable that contains the token clients must send")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Host name that requests may use; may be repeated")
    ] = None,
    forwarded_allow_ips: Annotated[
        str | None,
        typer.Option(
            help="Proxies whose X-Forwarded-Proto is trusted: addresses, networks or *. Default: this machine"
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Timeout of an image in seconds, including the time in the queue")
    ] = 300.0,
    max_size: Annotated[int, typer.Option(min=16, help="Maximum side of an image in pixels")] = 1024,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log")] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Number of Ray replicas that make images; the minimum with --max-replicas")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of replicas under load. Default: --replicas")
    ] = None,
    model_alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Additional model name that requests may use; may be repeated; any accepts every name"
        ),
    ] = None,
    response_format: Annotated[
        ResponseFormat, typer.Option(help="Response format of requests without one")
    ] = ResponseFormat.b64_json,
) -> None:
    """Serve OpenAI's image API at /v1/images/generations, and a page at /.

    SIGTERM finishes accepted requests and exits. SIGHUP replaces replicas one by one.

    \b
    Example:
      tpdm serve --backbone tinyworld --tpm tinyworld
      tpdm serve --tpm runs/demo/train/best --port 8000 --token-env TPDM_TOKEN
      tpdm serve --tpm tinyworld --replicas 2
      tpdm serve --tpm tinyworld --model-alias dall-e-2 --model-alias gpt-image-1
      tpdm serve --tpm tinyworld --model-alias any --response-format both
    """
    from tpdm.serving.http.sockets import reserved

    with reserved(host, port) as sockets:  # before torch, and long before a model is loaded
        from tpdm.rewards.loading import read_token

        aliases = _checked(device, replicas, max_replicas, model_alias or ())
        token = read_token(token_env)
        with require_extra("serve", "serving"):
            import tpdm.serving.http.server  # noqa: F401
        from tpdm.serving.engine.engine import make_engine
        from tpdm.serving.http.settings import LOOPBACK, Limits, Settings, describe_model

        limits, hosts = Limits(side=max_size, seconds=timeout), _hosts(host, token, allowed_host or [])
        settings = Settings(limits, token, hosts, log_prompts, forwarded_allow_ips, aliases, response_format.value)
        if token is None and host not in LOOPBACK:
            typer.echo(
                f"Warning: no --token-env given. Anyone who can reach {host}:{port} can use this model.", err=True
            )
        if tpm is None:
            typer.echo(f"No --tpm given. The pipeline's own schedule runs.{_hint(backbone)}", err=True)
        card = describe_model(backbone, tpm)
        sizes = {"slots": slots, "queue_limit": queue_limit}
        scales: dict[str, Any] = {"guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale}
        options = {**sizes, **{name: scale for name, scale in scales.items() if scale is not None}}
        make = partial(
            make_engine, backbone, tpm, **options, device=device, dtype=dtype, variant=variant, log_prompts=log_prompts
        )
        address = f"http://{in_url(host)}:{port}"
        _run(make, card, settings, sockets, address, replicas, max_replicas or replicas, timeout)


def _run(
    make: partial[PipelineEngine],
    card: ModelCard,
    settings: Settings,
    sockets: list[socket],
    address: str,
    replicas: int | None,
    max_replicas: int | None,
    timeout: float,
) -> None:
    """Makes the engine, or starts replicas, and serves until a signal stops the server."""
    from tpdm.serving.http.server import serve as run

    if replicas is None or max_replicas is None:
        engine = make()
        typer.echo(f"Serving {card.id} at {address}", err=True)
        run(engine, card, settings, sockets)
    else:
        remote = _replicated(make, replicas, max_replicas, timeout)
        typer.echo(f"Serving {card.id} at {address} with {replicas} replicas", err=True)
        run(remote, card, settings, sockets, remote.restart)


def _checked(device: str, replicas: int | None, max_replicas: int | None, aliases: Sequence[str]) -> tuple[str, ...]:
    """Checks options that exclude or need each other, and returns the aliases."""
    from tpdm.core.errors import ConfigError

    if replicas is not None and device.startswith("cuda:"):
        raise ConfigError(
            f"--device is {device} with --replicas. Ray assigns a GPU to each replica. Use --device cuda or auto."
        )
    if max_replicas is not None and replicas is None:
        raise ConfigError(
            f"--max-replicas is {max_replicas} without --replicas. Only --replicas starts Ray. Give both."
        )
    if any(not name.strip() for name in aliases):
        raise ConfigError("--model-alias is empty. It must be a name, or any for every name. Give one.")
    return tuple(aliases)


def _hint(backbone: str) -> str:
    """Names the TPM of the demo, if there is one for this pipeline."""
    if backbone != "tinyworld" or not TRAINED.is_dir():
        return ""
    return f" The demo trained a TPM: use it with --tpm {TRAINED}."


def _hosts(host: str, token: str | None, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """Host names that requests may use; None for any."""
    from tpdm.serving.http.settings import LOOPBACK

    # A token alone keeps other websites out. Without one, the host name does, on a loopback address.
    if token is None and host in LOOPBACK:
        return (*LOOPBACK, *allowed)
    return tuple(allowed) or None


def _replicated(make: partial[PipelineEngine], replicas: int, max_replicas: int, seconds: float) -> RemoteEngine:
    """Starts Ray replicas behind one engine."""
    with require_extra("ray", "serving"):
        from tpdm.serving.engine.ray_replicas import ReplicaConfig, start_replicas
    given = make.keywords
    # The GPUs of this machine say nothing about the cluster.
    gpus = {"auto": None, "cuda": 1.0}.get(given["device"], 0.0)
    return start_replicas(
        ReplicaConfig(make, replicas, max_replicas, given["slots"], given["queue_limit"], gpus, seconds)
    )
