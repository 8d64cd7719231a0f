"""``tpdm doctor`` and ``tpdm tinyworld build``: this machine, and the model that comes along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor() -> None:
    """Say what this machine has and lacks.

    The exit code is 1 if the demo cannot run.

    \b
    Example:
      tpdm doctor
    """
    from tpdm.cli.doctor import report

    if not report(typer.echo):
        raise typer.Exit(1)


def build(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("runs/tinyworld"),
    seed: Annotated[int, typer.Option(min=0, help="Of the whole build.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few updates only: tests the path, not the model.")] = False,
) -> None:
    """Build the embedded model again from nothing.

    \b
    Example:
      tpdm tinyworld build --out runs/tinyworld --quick
    """
    from tpdm.tinyworld.build.stages import build as run

    run(out=out, seed=seed, quick=quick)
    typer.echo(f"Built: see {out}")
