"""``tpdm reward serve``: a reward for other machines."""

from __future__ import annotations

from typing import Annotated

import typer

from tpdm.cli.arguments import in_url, require_extra


def serve(
    reward: Annotated[str, typer.Option(help="As reward.name in a recipe.")] = "tinyworld",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8080,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the token to ask for.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
) -> None:
    """Answer remote:http://HOST:PORT with a reward of this machine.

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
            typer.echo(f"No --token-env: whoever reaches {host}:{port} may use this reward.", err=True)
        typer.echo(f"Serving {reward} at http://{in_url(host)}:{port}", err=True)
        run(loaded, sockets, token)
