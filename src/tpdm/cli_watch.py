"""``tpdm watch``: a run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of a training run.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and return.")] = False,
) -> None:
    """Show a run while it trains, in this terminal or another; a finished or interrupted one too.

    \b
    Example:
      tpdm watch runs/first
      tpdm watch runs/first --once
    """
    from tpdm.train.watch import watch as run_watch

    run_watch(run, every, once)
