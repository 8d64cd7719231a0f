"""Runs of the small problem that are interrupted, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.support.gaussian_problem import DistanceReward, make_small_problem
from tpdm.core.io import read_metrics
from tpdm.rewards.base import Reward
from tpdm.training.checkpoint import RunState
from tpdm.training.loop import train_loop

CLOCKS = ("seconds", "reward_seconds", "learn_seconds")


class InterruptingReward(DistanceReward):
    """Scores so many calls, then the run is interrupted."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.calls == 0:
            raise KeyboardInterrupt  # an Exception would become a RewardError
        self.calls -= 1
        return super().score(images_B3HW, prompts)


def run(folder: Path, judge: Reward | None = None, **sections: Any) -> RunState:
    recipe, parts = make_small_problem(folder, judge, **sections)
    return train_loop(recipe, parts, folder)


def files(folder: Path) -> dict[str, str]:
    """Every file of a run by its digest; clocks are taken out, wherever they are written."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(path)]
            data = json.dumps(rows).encode()
        if path.name == "state.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k not in CLOCKS}).encode()
        if path.name == "sha256.json":  # state.json holds a clock
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "state.json"}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found
