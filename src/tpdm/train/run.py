"""From a recipe to a trained artefact: loads the parts, hands them to the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from tpdm.files import write_json
from tpdm.recipe import Recipe
from tpdm.recipe_idle import tell_idle
from tpdm.train.beating import beating
from tpdm.train.build import build_parts
from tpdm.train.disk import full_disk_told
from tpdm.train.loop import train_loop
from tpdm.train.team import join_team
from tpdm.train.trackers import check_packages, listening
from tpdm.types import ConfigError


def train(recipe: Recipe, resume: Literal["auto", "never"] = "auto") -> Path:
    """Trains a TPM, or goes on where an interrupted run of the same recipe stopped.

    Started in several processes (``torchrun``, ``accelerate launch``), they share the work; the first one writes.

    Args:
        recipe: what to do.
        resume: ``auto`` continues from the newest checkpoint in the output folder, ``never`` refuses to.

    Returns:
        The folder of the best artefact, ready for ``attach``.

    Raises:
        ConfigError: the output folder already holds a run and ``resume`` is ``never``.
        TpdmError: whatever the parts refuse; nothing is half written.
    """
    folder = Path(recipe.output)
    with join_team(recipe.backbone.device) as team:
        if team.leads and resume == "never" and (folder / "checkpoints").exists():
            raise ConfigError(f"got output {folder}, which already holds a run; choose another output or resume=auto")
        check_packages(recipe.trackers)
        if team.leads:
            tell_idle(recipe)
        parts = build_parts(recipe, folder, team)
        told = recipe if team.leads else replace(recipe, trackers=())
        with beating(team), full_disk_told(folder), listening(told, folder) as listeners:
            state = train_loop(recipe, replace(parts, listeners=listeners), folder, team)
        if team.leads:
            write_json(
                folder / "run.json",
                {
                    "updates": state.update,
                    "best_update": state.best_update,
                    "best_objective": state.best_objective,
                    "train_seconds": state.seconds,
                },
            )
    return folder / "best"
