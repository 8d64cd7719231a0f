"""Arguments that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")]


@contextmanager
def bringing(extra: str, use: str) -> Iterator[None]:
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
        from tpdm.types import ConfigError

        raise ConfigError(f"got no package {error.name}, which {use} needs; pip install 'tpdm[{extra}]'") from error


def in_url(host: str) -> str:
    """An address as URLs have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
