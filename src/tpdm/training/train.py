"""A full disk ends a run with a sentence, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from tpdm.config.recipe import Recipe
from tpdm.config.unused_keys import warn_unused_keys
from tpdm.core.errors import ConfigError, TrainingError
from tpdm.core.io import write_json
from tpdm.training.build import build_components
from tpdm.training.distributed.context import init_distributed
from tpdm.training.distributed.heartbeat import heartbeat
from tpdm.training.loop import train_loop
from tpdm.training.monitoring.trackers import check_packages, open_trackers

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, over the size that a file may have

# Its errors hold the number in their text alone: "(os error 28)", "Os { code: 28, ..." in old ones.
_SAFETENSORS = re.compile(r"(?:os error|Os \{ code:) (\d+)")


@contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Turns errors of a full disk inside the block into a ``TrainingError``; every other error passes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _number(error) not in FULL:
            raise
        raise TrainingError(
            f"got no more room for the files of {folder} ({' '.join(str(error).split())}), expected some; free some "
            "and give the same command, it goes on from the last checkpoint"
        ) from error


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _SAFETENSORS.search(str(error))
    return int(found[1]) if found else None


def train(recipe: Recipe, resume: Literal["auto", "never"] = "auto") -> Path:
    """Trains a TPM, or goes on where an interrupted run of the same recipe stopped.

    Started in several processes (``torchrun``, ``accelerate launch``), they share the work; the first one writes.

    Args:
        recipe: what to do.
        resume: ``auto`` continues from the newest checkpoint in the output folder, ``never`` refuses to.

    Returns:
        The folder of the best artifact, ready for ``attach``.

    Raises:
        ConfigError: the output folder already holds a run and ``resume`` is ``never``.
        TpdmError: whatever the parts refuse; nothing is half written.
    """
    folder = Path(recipe.output)
    with init_distributed(recipe.backbone.device) as team:
        if team.is_main_process and resume == "never" and (folder / "checkpoints").exists():
            raise ConfigError(f"got output {folder}, which already holds a run; choose another output or resume=auto")
        check_packages(recipe.trackers)
        if team.is_main_process:
            warn_unused_keys(recipe)
        parts = build_components(recipe, folder, team)
        told = recipe if team.is_main_process else replace(recipe, trackers=())
        with heartbeat(team), translate_disk_full(folder), open_trackers(told, folder) as listeners:
            state = train_loop(recipe, replace(parts, listeners=listeners), folder, team)
        if team.is_main_process:
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
