"""``metrics.jsonl``: one line an update or a validation, every name explained in docs/metrics.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

from tpdm.files import write_text
from tpdm.types import TrainingError


class MetricsLog:
    """Appends rows to a file.

    Args:
        path: the file.
        keep_up_to: rows of later updates are dropped first: a resumed run makes them again.
    """

    def __init__(self, path: Path, keep_up_to: int) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["update"] <= keep_up_to]
        # Before the first checkpoint nothing is resumed: not even the untrained policy's validation stays.
        kept = kept if keep_up_to else []
        write_text(path, "".join(_line(row) for row in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row and flushes it."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row)) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a last line cut off by a kill is left out.

    Raises:
        TrainingError: a line is no JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"got {where} damaged ({error}), expected a JSON object; remove that line") from error


def part_statistics(parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean and standard deviation of each part's raw scores (B,), in its own unit; nothing where there are no parts."""
    return {"parts": _by_name(parts)} if parts else {}


def judge_statistics(judged: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same of each held-out judge's scores; nothing where there are no judges."""
    return {"judges": _by_name(judged)} if judged else {}


def _by_name(scores: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    return {key: {"mean": float(s.mean()), "sd": float(s.std(correction=0))} for key, s in scores.items()}


def step_statistics(steps: Sequence[int]) -> dict[str, Any]:
    """Mean, standard deviation, extremes and histogram of the number of steps."""
    return {
        "steps_mean": fmean(steps),
        "steps_sd": pstdev(steps),
        "steps_min": min(steps),
        "steps_max": max(steps),
        "steps_histogram": {str(n): count for n, count in sorted(Counter(steps).items())},
    }
