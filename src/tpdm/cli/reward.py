"""``tpdm reward serve``: serves a reward to other machines."""

from __future__ import annotations

from typing import Annotated

import typer

from tpdm.cli.arguments import in_url, require_extra


def serve(
    reward: Annotated[str, typer.Option(help="Reward, named as reward.name in a recipe")] = "tinyworld",
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on")] = 8080,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable that contains the token clients must send")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images scored at once")] = 64,
) -> None:
    """Serve a reward of this machine at remote:http://HOST:PORT.

    \b
    Example:
      tpdm reward serve --reward pickscore --host 127.0.0.1 --port 8080 --token-env REWARD_TOKEN
    """
    from tpdm.serving.http.sockets import reserved

    with reserved(host, port) as sockets:  # before anything is loaded
        from tpdm.rewards.loading import load_reward, read_token

        token = read_token(token_env)
        with require_extra("serve", "serving"):
            from tpdm.serving.reward_server import serve as run
        from tpdm.core.device import resolve_device

        loaded = load_reward(reward, resolve_device(device), batch)
        if token is None and host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo(
                f"Warning: no --token-env given. Anyone who can reach {host}:{port} can use this reward.", err=True
            )
        typer.echo(f"Serving {reward} at http://{in_url(host)}:{port}", err=True)
        run(loaded, sockets, token)
