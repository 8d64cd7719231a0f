"""``tpdm inspect``, ``push`` and ``convert``: what a trained TPM is, the way to others, and from the release."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

UNSOUND = 1


def inspect(
    tpm: Annotated[str, typer.Argument(metavar="TPM", help="Folder or hub id of a TPM; tinyworld is the shipped one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a TPM is for, how it was trained, and whether its files are sound.

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
    tpm: Annotated[str, typer.Argument(metavar="TPM", help="Folder of a TPM, best/ of a run as a rule.")],
    folder: Annotated[Path | None, typer.Option(help="Write there.")] = None,
    hub: Annotated[str | None, typer.Option(help="Upload there: owner/name.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Where the repository is new.")] = False,
) -> None:
    """Publish a TPM with a card written from its run: to a folder, or to the hub.

    \b
    Example:
      tpdm push runs/first/best --folder published
      tpdm push runs/first/best --hub you/tpm-sd3 --private
    """
    from tpdm.core.errors import ConfigError

    if (folder is None) == (hub is None):
        raise ConfigError("got neither or both of --folder and --hub, expected one of them; say where to publish.")
    if private and hub is None:
        raise ConfigError("got --private with --folder, expected --hub; a folder is as private as its place.")
    from tpdm.policies.hub.push import publish_to_folder, push_to_hub

    draw = _find_curves()
    where = (
        publish_to_folder(tpm, str(folder), draw_curves=draw) if hub is None else push_to_hub(tpm, hub, private, draw)
    )
    typer.echo(f"Published: see {where}")


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file, a folder that holds it, or a hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the converted TPM.")],
    subfolder: Annotated[str | None, typer.Option(help="Of the folder or the repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    backbone: Annotated[str, typer.Option(help="Pipeline it belongs to.")] = (
        "stabilityai/stable-diffusion-3-medium-diffusers"
    ),
    guidance_scale: Annotated[float, typer.Option(min=0, help="Of the pipeline: 7.0 for SD3, 3.5 for SD3.5.")] = 7.0,
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 1024,
    max_steps: Annotated[int, typer.Option(min=1, help="Cap on the steps.")] = 35,
    stop_below: Annotated[float, typer.Option(min=0, max=1, help="Time below which an image is finished.")] = 0.001,
) -> None:
    """Turn a checkpoint of the published TPDM release into a folder for --tpm.

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
    """What draws training curves; None without matplotlib, which the card's table makes up for."""
    if find_spec("matplotlib") is None:
        return None
    from tpdm.evaluation.report.curves import training_curves

    return training_curves
