"""Atomic checkpoints of a run: everything that the next update depends on, and nothing else.

Prompts, noise and decisions of an update follow from the recipe's seed and the number of the update, so that
the weights, the optimizer and that number are the whole state. Under its final name a checkpoint is whole,
wherever the process was killed; what a kill leaves behind is called ``.writing-*``, never read, and removed by
the next save.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tpdm.files import load_tensors, save_tensors, write_json
from tpdm.policy import TimePredictor
from tpdm.train.average import WeightAverage
from tpdm.train.identity import differences
from tpdm.types import TrainingError

_NAME = re.compile(r"update-(\d{6})")


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    Attributes:
        update: updates done.
        best_objective: validation objective of what best/ holds; None before the first validation.
        best_update: after how many updates that was.
        seconds: training time so far.
        record: objectives of the validation images when their mean was highest.
    """

    update: int
    best_objective: float | None = None
    best_update: int | None = None
    seconds: float = 0.0
    record: tuple[float, ...] | None = None


def save_checkpoint(
    folder: Path,
    policy: TimePredictor,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    identity: Mapping[str, Any],
    keep: int,
) -> None:
    """Writes ``folder/update-NNNNNN`` under another name, renames it, and removes all but the last ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"update-{state.update:06d}"
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    save_tensors(temporary / "policy.safetensors", dict(policy.state_dict()))
    save_tensors(temporary / "average.safetensors", average.weights)
    flat = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    save_tensors(temporary / "optimizer.safetensors", flat)
    write_json(temporary / "state.json", asdict(state))
    write_json(temporary / "identity.json", identity)
    temporary.chmod(0o755)  # mkdtemp makes it private
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
    folder: Path,
    policy: TimePredictor,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> RunState | None:
    """Restores the newest checkpoint into policy, average and optimizer; None where there is none.

    Raises:
        TrainingError: the checkpoint cannot be read, or belongs to another run (see ``run_identity``).
    """
    existing = _existing(folder)
    if not existing:
        return None
    newest = existing[-1]
    try:
        before = json.loads((newest / "identity.json").read_text(encoding="utf-8"))
        changed = differences(before, identity)
        if not changed:
            return _restore(newest, policy, average, optimizer)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        way_out = f"from {existing[-2].name}" if len(existing) > 1 else "from the beginning"
        raise TrainingError(
            f"got {newest}, which cannot be read ({reason}), expected a whole checkpoint; remove that folder to "
            f"go on {way_out}"
        ) from error
    raise TrainingError(
        f"got a recipe that differs from the one of {newest} ({changed}), expected the same; change it back to "
        "go on, or choose another output"
    )


def _restore(
    checkpoint: Path, policy: TimePredictor, average: WeightAverage, optimizer: torch.optim.Optimizer
) -> RunState:
    facts = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    record = facts["record"]
    state = RunState(**facts | {"record": None if record is None else tuple(record)})
    weights = load_tensors(checkpoint / "policy.safetensors")[0]
    averaged = load_tensors(checkpoint / "average.safetensors")[0]
    packed = optimizer.state_dict()
    packed["state"] = {}
    for key, value in load_tensors(checkpoint / "optimizer.safetensors")[0].items():
        index, name = key.split(".", 1)
        packed["state"].setdefault(int(index), {})[name] = value
    policy.load_state_dict(averaged)  # strict: refuses another shape
    average.weights = {k: v.detach().clone() for k, v in policy.state_dict().items()}
    policy.load_state_dict(weights)
    optimizer.load_state_dict(packed)
    return state
