"""Atomic checkpoints that contain exactly the state on which the next update depends.

Prompts, noise and decisions of an update follow from the seed of the recipe and the number of the update. The weights,
the optimizer and that number are therefore the complete state. A checkpoint gets its final name when it is complete. A
killed process leaves a folder ``.writing-*``, which is never read and which the next save removes. A checkpoint
contains the sha256 of each file. If one is damaged, the checkpoint before it is used.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tpdm.core.errors import TrainingError
from tpdm.core.io import load_tensors, replaced_folder, save_tensors, sha256, write_json
from tpdm.policies.tpm import TimePredictionModule
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.ema import EMA
from tpdm.training.run_identity import differences, under_present_names

logger = logging.getLogger(__name__)
_DIGESTS = "sha256.json"
_NAME = re.compile(r"update-(\d{6})")


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        update: Updates done.
        best_objective: Validation objective of best/. None before the first validation.
        best_update: Updates done when best/ was saved. None before the first validation.
        seconds: Training time so far, in seconds.
        record: Objectives of the validation images when their mean was highest. None before the first validation.
    """

    update: int
    best_objective: float | None = None
    best_update: int | None = None
    seconds: float = 0.0
    record: tuple[float, ...] | None = None


def save_checkpoint(
    folder: Path,
    policy: TimePredictionModule,
    average: EMA,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    identity: Mapping[str, Any],
    keep: int,
) -> None:
    """Writes ``folder/update-NNNNNN`` under a temporary name, renames it, and removes old checkpoints.

    Args:
        folder: Folder of the checkpoints.
        policy: The trained policy.
        average: Average of its weights.
        optimizer: Its optimizer.
        state: State of the run.
        identity: See ``run_identity``.
        keep: Number of checkpoints to keep, >= 1.
    """
    with replaced_folder(folder / f"update-{state.update:06d}", prefix=".writing-") as new:
        save_tensors(new / "policy.safetensors", dict(policy.state_dict()))
        save_tensors(new / "average.safetensors", average.weights)
        save_tensors(new / "optimizer.safetensors", _flat(optimizer))
        write_json(new / "state.json", asdict(state))
        write_json(new / "identity.json", identity)
        write_json(new / _DIGESTS, {p.name: sha256(p) for p in sorted(new.iterdir())})
    for old in _existing(folder)[:-keep]:
        shutil.rmtree(old)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _existing(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("update-*") if _NAME.fullmatch(p.name))


@dataclass(frozen=True)
class _Checkpoint:
    """A complete checkpoint. Names in ``tensors`` start with the name of their file."""

    state: RunState
    tensors: dict[str, Tensor]


def load_checkpoint(
    folder: Path,
    policy: TimePredictionModule,
    average: EMA,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    context: DistributedContext = SINGLE_PROCESS,
) -> RunState | None:
    """Restores policy, average and optimizer from the newest complete checkpoint.

    A damaged checkpoint is logged, and the one before it is used. Only the main process reads.

    Args:
        folder: Folder of the checkpoints.
        policy, average, optimizer: Restored in place.
        identity: See ``run_identity``.
        context: The processes of the run. Default: this process only.

    Returns:
        The state of the run. None if there is no checkpoint.

    Raises:
        TrainingError: All checkpoints are damaged, or the newest belongs to another run.
    """
    checkpoint = _newest_complete(folder, identity) if context.is_main_process else None
    facts = context.broadcast_object(None if checkpoint is None else asdict(checkpoint.state))
    if facts is None:
        return None
    tensors = context.broadcast_tensors({} if checkpoint is None else checkpoint.tensors)
    _restore(tensors, policy, average, optimizer)
    return _state(facts)


def _newest_complete(folder: Path, identity: Mapping[str, Any]) -> _Checkpoint | None:
    reasons = []
    for path in reversed(_existing(folder)):
        try:
            before, checkpoint = _read(path)
        except (OSError, LookupError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            reasons.append(reason)
            logger.warning(
                "Checkpoint %s is damaged (%s). The checkpoint before it is used, if there is one.", path, reason
            )
            continue
        changed = differences(before, identity)
        if changed:
            raise TrainingError(
                f"The recipe differs from the recipe of {path}: {changed}. A resumed run must have the same recipe. "
                "Change it back, or choose another output."
            )
        return checkpoint
    if reasons:
        raise TrainingError(
            f"Every checkpoint in {folder} is damaged (the newest: {reasons[0]}). At least one must be complete. "
            "Remove that folder to train from the beginning."
        )
    return None


def _read(path: Path) -> tuple[dict[str, Any], _Checkpoint]:
    """The identity and the content of a checkpoint.

    Raises:
        ValueError: A file differs from what was written. A missing or invalid file raises the errors of Python.
    """
    for name, digest in json.loads((path / _DIGESTS).read_text(encoding="utf-8")).items():
        if sha256(path / name) != digest:
            raise ValueError(f"{name} has another sha256 than when it was written")
    tensors = {
        f"{name}.{key}": value
        for name in ("policy", "average", "optimizer")
        for key, value in load_tensors(path / f"{name}.safetensors")[0].items()
    }
    identity = under_present_names(json.loads((path / "identity.json").read_text(encoding="utf-8")))
    return identity, _Checkpoint(_state(json.loads((path / "state.json").read_text(encoding="utf-8"))), tensors)


def _state(facts: dict[str, Any]) -> RunState:
    record = facts["record"]
    return RunState(**facts | {"record": None if record is None else tuple(record)})


def _restore(
    tensors: Mapping[str, Tensor], policy: TimePredictionModule, average: EMA, optimizer: torch.optim.Optimizer
) -> None:
    by_file: dict[str, dict[str, Tensor]] = {"policy": {}, "average": {}, "optimizer": {}}
    for key, value in tensors.items():
        file, name = key.split(".", 1)
        by_file[file][name] = value
    packed = optimizer.state_dict()
    packed["state"] = {}
    for key, value in by_file["optimizer"].items():
        index, name = key.split(".", 1)
        packed["state"].setdefault(int(index), {})[name] = value
    policy.load_state_dict(by_file["average"])  # strict, so that another shape is refused
    average.weights = {k: v.detach().clone() for k, v in policy.state_dict().items()}
    policy.load_state_dict(by_file["policy"])
    optimizer.load_state_dict(packed)
