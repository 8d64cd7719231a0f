"""``tpdm eval`` and ``tpdm report``: evaluation of a trained TPM, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tpdm.cli.arguments import Overrides, RecipePath, require_extra


def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Evaluate a trained TPM against fixed schedules and other baselines. An interrupted evaluation is resumed.

    \b
    Example:
      tpdm eval recipe.yaml backbone.device=cpu
    """
    from tpdm.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with require_extra("eval", "an evaluation"):
        from tpdm.evaluation.evaluate import evaluate as run

    run(loaded)
    typer.echo(f"Evaluated: see {Path(loaded.output) / 'eval' / 'report.html'}")


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of an evaluation: OUTPUT/eval, or runs/demo")
    ],
    title: Annotated[str, typer.Option(help="Heading of the report")] = "tpdm",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of results as Markdown")] = False,
) -> None:
    """Write the report of an evaluation again from its results.

    \b
    Example:
      tpdm report runs/demo --title "tpdm on tinyworld"
    """
    with require_extra("eval", "a report"):
        from tpdm.evaluation.report.build import markdown_table, write_report
        from tpdm.evaluation.report.results import load_results

    path = write_report(folder, title)
    if markdown:
        typer.echo(markdown_table(load_results(folder).summary), nl=False)
    typer.echo(f"Written: {path}", err=markdown)
