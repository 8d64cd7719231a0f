"""A demo folder made of invented numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES = 12
POLICIES = {"static-28": 28, "static-14": 14, "static-14 (best <shift>)": 14, "mean schedule": 13, "tpdm": 0}
PROMPT = "a <b>red</b> circle & a 'blue' \"square\""
MEASURES = {"reward": [-0.2, -0.3, -0.1], "accuracy": [0.0, -0.1, 0.1], "residual": [-1.0, -2.0, -0.5]}


def row(policy: str, index: int) -> dict[str, Any]:
    """Gains of tpdm over static-28 rise with the index, its steps fall: every rule knows its images."""
    steps = POLICIES[policy] or 20 - index
    return {
        "policy": policy,
        "index": index,
        "prompt": f"{PROMPT} {index}",
        "seed": 100 + index,
        "steps": steps,
        "times": np.linspace(1, 0, steps + 1).tolist(),
        "score": 0.1 * index - 0.4 if policy == "tpdm" else 0.0,
        "accuracy": 0.9,
        "residual": 8.0,
        "objects": float(1 + index % 3),
    }


def summary() -> dict[str, Any]:
    return {
        "rows": [
            {
                "name": name,
                "steps_mean": steps or 14.5,
                "steps_sd": 0.0 if steps else 3.45,
                "reward_mean": 0.15,
                "seconds_per_image": 0.25,
                "accuracy": 0.9,
                "residual": 8.0,
            }
            for name, steps in POLICIES.items()
        ],
        "paired": {name: dict(MEASURES) for name in POLICIES if name != "tpdm"},
        "steps_by_objects": {"1": {"mean": 12.0, "sd": 1.0, "count": 4}},
        "steps_vs_difficulty": {"correlation": 0.5, "low": 0.3, "high": 0.7, "margin": 0.05, "grid": [4, 8]},
        "difficulty": [[4 + 4 * (i % 2), 20 - i] for i in range(IMAGES)],
        "train_seconds": 90.0,
        "total_seconds": 12.0,
        "seeds": {"train": 0, "test": 7},
        "versions": {"torch": "2.13"},
        "git_revision": "<revision>",
        "hardware": "two cores & hope",
        "command": "tpdm demo --seed 0",
    }


def metrics() -> list[dict[str, Any]]:
    train = [
        {"kind": "train", "update": u, "score_mean": 0.1 * u, "objective_mean": 0.1, "entropy": -0.5}
        | {"steps_mean": 14.0, "steps_sd": 2.0, "clip_fraction": 0.1}
        for u in range(1, 5)
    ]
    return [*train, {"kind": "validation", "update": 4, "objective_mean": 0.2, "score_mean": 0.3, "steps_mean": 13.0}]


def write_folder(folder: Path, with_metrics: bool = True, with_pictures: bool = True) -> Path:
    (folder / "train").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary()), encoding="utf-8")
    rows = [row(policy, i) for policy in POLICIES for i in range(IMAGES)]
    write_lines(folder / "results.jsonl", rows)
    if with_metrics:
        write_lines(folder / "train" / "metrics.jsonl", metrics())
    if with_pictures:
        for one in rows:
            path = folder / "pictures" / one["policy"] / f"{one['index']:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = 20 * list(POLICIES).index(one["policy"])
            Image.new("RGB", (64, 64), (one["index"], shade, 0)).save(path)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
