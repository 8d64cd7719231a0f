"""``tpdm serve``: pictures over HTTP, made in this process or by replicas."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpdm.cli.arguments import in_url, require_extra

if TYPE_CHECKING:
    from tpdm.serving.engine.engine import PipelineEngine
    from tpdm.serving.engine.remote import RemoteEngine

TRAINED = Path("runs/demo/train/best")


class ResponseFormat(str, Enum):
    """How pictures come with an answer."""

    b64_json = "b64_json"
    url = "url"
    both = "both"


def serve(
    backbone: Annotated[str, typer.Option(help="tinyworld, a diffusers folder or a hub id.")] = "tinyworld",
    tpm: Annotated[str | None, typer.Option(help="Folder of a TPM; without it the stock schedule serves.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="Images in flight, of each replica.")] = 8,
    queue_limit: Annotated[int, typer.Option(min=0, help="Images that may wait.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="Of requests that give none; the TPM's or pipeline's own if left out.")
    ] = None,
    true_cfg_scale: Annotated[
        float | None, typer.Option(min=0, help="The same of guidance against the negative prompt: FLUX.1, Qwen-Image.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as fp16; else the plain ones.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the token to ask for.")] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name clients may call the server by; may be repeated.")
    ] = None,
    forwarded_allow_ips: Annotated[
        str | None,
        typer.Option(help="Proxies whose X-Forwarded-Proto counts: addresses, networks or *; else this machine's."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds an image may take, waiting included.")] = 300.0,
    max_size: Annotated[int, typer.Option(min=16, help="Longest side of an image in pixels.")] = 1024,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Processes that make images, through Ray; at least so many.")
    ] = None,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="So many under load; --replicas if left out.")] = None,
    model_alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name that requests may give the model; may be repeated; any takes every name."
        ),
    ] = None,
    response_format: Annotated[
        ResponseFormat, typer.Option(help="How pictures come where a request does not say.")
    ] = ResponseFormat.b64_json,
) -> None:
    """Answer POST /v1/images/generations, as OpenAI's clients send it, and show a page at /.

    SIGTERM finishes what was accepted; SIGHUP replaces replicas one by one.

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
        from tpdm.core.errors import ConfigError
        from tpdm.rewards.loading import read_token

        if replicas is not None and device.startswith("cuda:"):
            raise ConfigError(
                f"got --device {device} with --replicas, expected cuda or auto, for Ray gives each replica a GPU of "
                "its own; leave the number out."
            )
        if max_replicas is not None and replicas is None:
            raise ConfigError(
                f"got --max-replicas {max_replicas} alone, expected --replicas too; without, no Ray is started."
            )
        aliases = tuple(model_alias or ())
        if any(not name.strip() for name in aliases):
            raise ConfigError("got an empty --model-alias, expected a name, or any for every name; give one.")
        token = read_token(token_env)
        with require_extra("serve", "serving"):
            from tpdm.serving.http.server import serve as run
        from tpdm.serving.engine.engine import make_engine
        from tpdm.serving.http.settings import LOOPBACK, Limits, Settings, describe_model

        limits, hosts = Limits(side=max_size, seconds=timeout), _hosts(host, token, allowed_host or [])
        settings = Settings(limits, token, hosts, log_prompts, forwarded_allow_ips, aliases, response_format.value)
        if token is None and host not in LOOPBACK:
            typer.echo(f"No --token-env: whoever reaches {host}:{port} may use this model.", err=True)
        if tpm is None:
            typer.echo(f"No --tpm: the pipeline's own schedule serves.{_hint(backbone)}", err=True)
        card = describe_model(backbone, tpm)
        sizes = {"slots": slots, "queue_limit": queue_limit}
        scales: dict[str, Any] = {"guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale}
        options = {**sizes, **{name: scale for name, scale in scales.items() if scale is not None}}
        make = partial(
            make_engine, backbone, tpm, **options, device=device, dtype=dtype, variant=variant, log_prompts=log_prompts
        )
        words = f"Serving {card.id} at http://{in_url(host)}:{port}"
        if replicas is None:
            engine = make()
            typer.echo(words, err=True)
            run(engine, card, settings, sockets)
        else:
            remote = _replicated(make, replicas, max_replicas or replicas, timeout)
            typer.echo(f"{words} with {replicas} replicas", err=True)
            run(remote, card, settings, sockets, remote.restart)


def _hint(backbone: str) -> str:
    """Where a TPM for the embedded model is, if the demo has left one."""
    if backbone != "tinyworld" or not TRAINED.is_dir():
        return ""
    return f" A TPM is at {TRAINED}: serve it with --tpm {TRAINED}."


def _hosts(host: str, token: str | None, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """Names that the server answers to; None for any."""
    from tpdm.serving.http.settings import LOOPBACK

    # A token keeps other sites out by itself; without one the name does, where only this machine should ask.
    if token is None and host in LOOPBACK:
        return (*LOOPBACK, *allowed)
    return tuple(allowed) or None


def _replicated(make: partial[PipelineEngine], replicas: int, most: int, seconds: float) -> RemoteEngine:
    """As many engines behind one."""
    with require_extra("ray", "serving"):
        from tpdm.serving.engine.ray_replicas import ReplicaConfig, start_replicas
    given = make.keywords
    # What there is on the machine of the front says nothing of the cluster.
    gpus = {"auto": None, "cuda": 1.0}.get(given["device"], 0.0)
    return start_replicas(ReplicaConfig(make, replicas, most, given["slots"], given["queue_limit"], gpus, seconds))
