"""Atomic checkpoints of a run: everything that the next update depends on, and nothing else.

Prompts, noise and decisions of an update follow from the recipe's seed and the number of the update, so that the
weights, the optimizer and that number are the whole state.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from tpdm.files import load_tensors, save_tensors, write_json
from tpdm.policy import TimePredictor
from tpdm.types import TrainingError

_NAME = re.compile(r"update-(\d{6})")


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    Attributes:
        update: updates done.
        recipe_hash: of the recipe that made it.
        best_objective: best validation objective so far; None before the first validation.
        best_update: after how many updates it was reached.
        seconds: training time so far.
    """

    update: int
    recipe_hash: str
    best_objective: float | None = None
    best_update: int | None = None
    seconds: float = 0.0


def save_checkpoint(
    folder: Path, policy: TimePredictor, optimizer: torch.optim.Optimizer, state: RunState, keep: int
) -> None:
    """Writes ``folder/update-NNNNNN`` under a temporary name, renames it, and removes all but the last ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"update-{state.update:06d}"
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    save_tensors(temporary / "policy.safetensors", dict(policy.state_dict()))
    flat = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    save_tensors(temporary / "optimizer.safetensors", flat)
    write_json(temporary / "state.json", asdict(state))
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in _existing(folder)[:-keep]:
        shutil.rmtree(old)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _existing(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("update-*") if _NAME.fullmatch(p.name))


def load_checkpoint(
    folder: Path, policy: TimePredictor, optimizer: torch.optim.Optimizer, recipe_hash: str
) -> RunState | None:
    """Restores the newest checkpoint into policy and optimizer; None where there is none.

    Raises:
        TrainingError: the checkpoint cannot be read, or belongs to another recipe.
    """
    existing = _existing(folder)
    if not existing:
        return None
    newest = existing[-1]
    try:
        state = RunState(**json.loads((newest / "state.json").read_text(encoding="utf-8")))
        if state.recipe_hash != recipe_hash:
            raise TrainingError(
                f"{newest} was made with another recipe ({state.recipe_hash}, now {recipe_hash}); go on with the "
                "recipe.yaml saved beside it, or choose another output"
            )
        policy.load_state_dict(load_tensors(newest / "policy.safetensors")[0])
        packed = optimizer.state_dict()
        packed["state"] = {}
        for key, value in load_tensors(newest / "optimizer.safetensors")[0].items():
            index, name = key.split(".", 1)
            packed["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(packed)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"{newest} cannot be read ({reason}); remove that folder to go on from the one before"
        ) from error
    return state
