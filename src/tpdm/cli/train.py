"""``tpdm train``, ``tpdm watch`` and ``tpdm demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tpdm.cli.arguments import Overrides, RecipePath, require_extra


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and a memory estimate, without loading weights")
    ] = False,
) -> None:
    """Train a TPM. An interrupted run is resumed.

    \b
    Example:
      tpdm train recipe.yaml rl.updates=50 optimizer.lr=3e-5
      tpdm train recipe.yaml --dry-run
      torchrun --nproc-per-node 2 -m tpdm train recipe.yaml
    """
    from tpdm.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or [])  # a wrong recipe is reported before torch is loaded
    if dry_run:
        from tpdm.training.planning.plan import describe, make_plan

        typer.echo(describe(make_plan(loaded), loaded))
        return
    from tpdm.training.train import train as run

    run(loaded, resume="auto")
    if os.environ.get("RANK", "0") == "0":  # only the main process prints
        typer.echo(f"Trained: see {loaded.output}")


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of a training run")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between refreshes")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and return")] = False,
) -> None:
    """Show the state of a run: training, finished or interrupted.

    \b
    Example:
      tpdm watch runs/first
      tpdm watch runs/first --once
    """
    from tpdm.training.monitoring.dashboard import watch as run_watch

    run_watch(run, every, once)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run")] = 0,
) -> None:
    """Train a TPM on the embedded model, evaluate it, and write a report.

    \b
    Example:
      tpdm demo --out runs/demo --seed 1
    """
    with require_extra("eval", "the demo"):
        from tpdm.cli.demo import run_demo

    run_demo(out=out, seed=seed)
    typer.echo(f"Done: see {out}")
