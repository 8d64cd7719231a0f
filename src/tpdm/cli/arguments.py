"""Arguments and helpers that several subcommands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Recipe", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides of recipe keys")]

# Option names of other programs and of Python calls, and the likely options here.
_MEANT = {
    "--num-steps": ("--num-inference-steps", "--max-steps"),
    "--sampling-steps": ("--num-inference-steps", "--max-steps"),
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
    """Sets the suggestions of an error about an unknown option.

    Args:
        error: click's NoSuchOption. Its ``possibilities`` are replaced if a likely option is known.
    """
    known = {name for parameter in error.ctx.command.params for name in parameter.opts} if error.ctx else set()
    found = [name for name in _MEANT.get(error.option_name.replace("_", "-"), ()) if name in known]
    error.possibilities = found or error.possibilities


@contextmanager
def require_extra(extra: str, use: str) -> Iterator[None]:
    """Names the extra of this package that installs a missing import.

    Args:
        extra: Name of the extra, such as ``serve``.
        use: What needs it, for the message.

    Raises:
        ConfigError: A package is missing.

    Example:
        >>> with require_extra("serve", "serving"):
        ...     import no_such_package
        Traceback (most recent call last):
        ...
        tpdm.core.errors.ConfigError: Package no_such_package is missing, which serving needs. Run pip install
        'tpdm[serve]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        from tpdm.core.errors import ConfigError

        raise ConfigError(
            f"Package {error.name} is missing, which {use} needs. Run pip install 'tpdm[{extra}]'."
        ) from error


def in_url(host: str) -> str:
    """A host as it is written in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
