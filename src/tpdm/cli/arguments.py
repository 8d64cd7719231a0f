"""Arguments that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")]

# Words of other programs and of Python calls, and what they may be here.
_MEANT = {
    "--num-inference-steps": ("--steps", "--max-steps"),
    "--num-steps": ("--steps", "--max-steps"),
    "--seeds": ("--seed",),
    "--cfg": ("--guidance-scale", "--true-cfg-scale"),
    "--cfg-scale": ("--guidance-scale", "--true-cfg-scale"),
    "--guidance": ("--guidance-scale",),
    "--model": ("--backbone",),
    "--pipeline": ("--backbone",),
    "--output": ("--out",),
    "--output-dir": ("--out",),
    "--prompt-file": ("--prompts",),
    "--column": ("--prompt-column",),
    "--num-prompts": ("--limit",),
}


def lead_to_options(error: Any) -> None:
    """Gives an error about an unknown option those of its command that are likely meant; others keep the near ones.

    Args:
        error: click's NoSuchOption.
    """
    known = {name for parameter in error.ctx.command.params for name in parameter.opts} if error.ctx else set()
    found = [name for name in _MEANT.get(error.option_name.replace("_", "-"), ()) if name in known]
    error.possibilities = found or error.possibilities


@contextmanager
def require_extra(extra: str, use: str) -> Iterator[None]:
    """Says which extra of this package brings what an import inside does not find.

    Args:
        extra: its name.
        use: what needs it.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        from tpdm.core.errors import ConfigError

        raise ConfigError(f"got no package {error.name}, which {use} needs; pip install 'tpdm[{extra}]'") from error


def in_url(host: str) -> str:
    """An address as URLs have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
