"""``tpdm.train``: one run from a recipe to artifacts, with an error message for a full disk."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, file too large

# The number is only in the text of its errors: "(os error 28)", or "Os { code: 28, ..." in old versions.
_SAFETENSORS = re.compile(r"(?:os error|Os \{ code:) (\d+)")


@contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Turns errors of a full disk into a ``TrainingError``.

    Other errors are unchanged, and the last checkpoint stays valid.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _number(error) not in FULL:
            raise
        raise TrainingError(
            f"The disk of {folder} is full ({' '.join(str(error).split())}). The run needs room for its files. Free "
            "some, and repeat the command, which resumes from the last checkpoint."
        ) from error


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    match = _SAFETENSORS.search(str(error))
    return int(match[1]) if match else None


def train(recipe: Recipe, resume: Literal["auto", "never"] = "auto") -> Path:
    """Trains a TPM, or resumes an interrupted run of the same recipe.

    If ``torchrun`` or ``accelerate launch`` started several processes, they share the work. Only the main process
    writes files.

    Args:
        recipe: Recipe of the run (see ``tpdm.load_recipe``).
        resume: "auto" resumes from the newest checkpoint in the output folder. "never" refuses an output folder that
            contains a run. Default: "auto".

    Returns:
        The folder of the best artifact, which ``attach`` accepts.

    Raises:
        ConfigError: The output folder contains a run and ``resume`` is "never".
        TpdmError: A component refuses the recipe, or the run fails. Every file on the disk is complete.

    Example:
        >>> from tpdm import load_recipe, train
        >>> folder = train(load_recipe("recipes/tinyworld.yaml", ["rl.updates=20"]))  # doctest: +SKIP
    """
    folder = Path(recipe.output)
    with init_distributed(recipe.backbone.device) as context:
        main = context.is_main_process
        if main and resume == "never" and (folder / "checkpoints").exists():
            raise ConfigError(
                f"output is {folder}, which contains a run. It must be a new folder with resume=never. Choose another "
                "output, or use resume=auto."
            )
        check_packages(recipe.trackers)
        if main:
            warn_unused_keys(recipe)
        components = build_components(recipe, folder, context)
        trackers = open_trackers(recipe, folder) if main else nullcontext(())
        with heartbeat(context), translate_disk_full(folder), trackers as listeners:
            state = train_loop(recipe, replace(components, listeners=listeners), folder, context)
        if main:
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
