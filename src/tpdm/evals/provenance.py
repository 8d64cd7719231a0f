"""Where the numbers of an evaluation come from."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tpdm.config import recipe_hash
from tpdm.evals.tasks import run_device
from tpdm.recipe import Recipe

PACKAGES = ("tpdm", "torch", "diffusers", "transformers")


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Versions, git revision, recipe and hardware of this run."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_revision": git_revision(Path(__file__)),
        "recipe_hash": recipe_hash(recipe),
        "hardware": hardware(recipe),
    }


def hardware(recipe: Recipe) -> str:
    """What the recipe runs on here: a GPU with the dtype of the backbone, CPU threads, and the machine."""
    device, cpu = run_device(recipe), f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    return f"{torch.cuda.get_device_name(device)}, {recipe.backbone.dtype}, {cpu}" if "cuda" in device else cpu


def git_revision(file: Path) -> str | None:
    """The commit that a source file is checked out from; None for an installed copy, or where there is no git.

    An installed copy may lie below somebody else's checkout, whose commit says nothing of it.
    """
    command = ["git", "rev-parse", "HEAD", f"HEAD:./{file.name}"]
    try:
        found = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.split()[0]
