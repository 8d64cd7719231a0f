"""``tpdm doctor`` and ``tpdm tinyworld build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor() -> None:
    """Check what this machine has and lacks for tpdm.

    The exit code is 1 if the demo cannot run.

    \b
    Example:
      tpdm doctor
    """
    from tpdm.cli.doctor import report

    if not report(typer.echo):
        raise typer.Exit(1)


def build(
    out: Annotated[Path, typer.Option(help="Folder for the weights")] = Path("runs/tinyworld"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the build")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run only a few updates, to test the code and not the model")
    ] = False,
) -> None:
    """Train the embedded model again from scratch.

    \b
    Example:
      tpdm tinyworld build --out runs/tinyworld --quick
    """
    from tpdm.tinyworld.build.stages import build as run

    run(out=out, seed=seed, quick=quick)
    typer.echo(f"Built: see {out}")
