"""``tpdm inspect``, ``push`` and ``convert``: describe a TPM, publish it, convert a published checkpoint."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

UNSOUND = 1


def inspect(
    tpm: Annotated[str, typer.Argument(metavar="TPM", help="Folder or hub id of a TPM; tinyworld is the shipped one")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Describe a TPM: its pipeline, its training, and whether its files are intact.

    The exit code is 1 if they are not.

    \b
    Example:
      tpdm inspect tinyworld
      tpdm inspect runs/first/best --json
    """
    from tpdm.policies.hub.inspect import describe, inspect_tpm

    report = inspect_tpm(tpm)
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else describe(report))
    if report.problems:
        raise typer.Exit(UNSOUND)


def push(
    tpm: Annotated[str, typer.Argument(metavar="TPM", help="Folder of a TPM, usually best/ of a run")],
    folder: Annotated[Path | None, typer.Option(help="Folder to write to")] = None,
    hub: Annotated[str | None, typer.Option(help="Hub repository to upload to: owner/name")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private")] = False,
) -> None:
    """Publish a TPM with a model card to a folder or to the hub.

    \b
    Example:
      tpdm push runs/first/best --folder published
      tpdm push runs/first/best --hub you/tpm-sd3 --private
    """
    from tpdm.core.errors import ConfigError

    if (folder is None) == (hub is None):
        raise ConfigError("--folder and --hub exclude each other, and one is needed. Give one of them.")
    if private and hub is None:
        raise ConfigError(
            "--private is given with --folder. Only a hub repository can be private. Use --hub, or leave --private out."
        )
    from tpdm.policies.hub.push import publish_to_folder, push_to_hub

    draw = _find_curves()
    where = (
        publish_to_folder(tpm, str(folder), draw_curves=draw) if hub is None else push_to_hub(tpm, hub, private, draw)
    )
    typer.echo(f"Published: see {where}")


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file, a folder that contains one, or a hub id")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the converted TPM")],
    subfolder: Annotated[str | None, typer.Option(help="Subfolder of the folder or repository")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub")] = None,
    backbone: Annotated[str, typer.Option(help="Pipeline that the checkpoint was trained on")] = (
        "stabilityai/stable-diffusion-3-medium-diffusers"
    ),
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="Guidance scale in training: 7.0 for SD3, 3.5 for SD3.5")
    ] = 7.0,
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels")] = 1024,
    max_steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps")] = 35,
    stop_below: Annotated[float, typer.Option(min=0, max=1, help="Time below which an image goes to t = 0")] = 0.001,
) -> None:
    """Convert a checkpoint of the published TPDM release into a folder for --tpm.

    \b
    Example:
      tpdm convert MAPLE-WestLake-AIGC/TPDM --subfolder sd3 --out tpm-sd3
      tpdm convert tpm-sd3.safetensors --out tpm-sd3
    """
    from tpdm.policies.conversion import convert as run

    folder = run(
        checkpoint,
        out,
        subfolder=subfolder,
        revision=revision,
        backbone=backbone,
        guidance_scale=guidance_scale,
        size=size,
        max_steps=max_steps,
        stop_below=stop_below,
    )
    typer.echo(f"Converted: see {folder}")


def _find_curves() -> Any:
    """The function that draws training curves; None without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    from tpdm.evaluation.report.curves import training_curves

    return training_curves
