"""The demo over several training seeds.

A run is `tpdm demo --seed N`. Its summary is kept without the lists per image. Its validations are kept as the curve
that recipes/tinyworld.yaml shows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.labeled_grid import labeled_grid
from benchmarks.quality.demo_seeds_page import results_section
from tpdm.cli.demo import run_demo
from tpdm.core.io import read_metrics, write_json

CURVES = "demo-curves.json"
PICTURE = Path("docs/images/demo.png")


def measure(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    folders = [chosen.runs / f"demo-seed-{seed}" for seed in chosen.seeds]  # relative: the summary has the command
    for folder, seed in zip(folders, chosen.seeds, strict=True):
        if not (folder / "summary.json").exists() or "command" not in (folder / "summary.json").read_text():
            run_demo(folder, seed)
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]
    if not chosen.print:
        every = zip(chosen.seeds, folders, summaries, strict=True)
        write_json(chosen.file.with_name(CURVES), [curve(*one) for one in every])
        draw_grid(folders[0])
    return [{key: value for key, value in summary.items() if key != "difficulty"} for summary in summaries]


def curve(seed: int, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Validations of a run (update, mean steps, mean score), steps of the last one, and the facts of the run."""
    kept = {key: summary[key] for key in ("git_revision", "recipe_hash", "hardware", "versions")}
    rows = [row for row in read_metrics(folder / "train" / "metrics.jsonl") if row["kind"] == "validation"]
    points = [{"update": row["update"], "steps": row["steps_mean"], "score": row["score_mean"]} for row in rows]
    return {"seed": seed, **kept, "validations": points, "last_steps_histogram": rows[-1]["steps_histogram"]}


def draw_grid(folder: Path) -> None:
    """Five images from the fewest to the most steps of the TPM (evenly spaced ranks, ties by index), both ways."""
    rows = read_metrics(folder / "results.jsonl")
    by_policy = {name: [r for r in rows if r["policy"] == name] for name in ("static-28", "tpdm")}
    order = sorted(range(len(by_policy["tpdm"])), key=lambda i: (by_policy["tpdm"][i]["steps"], i))
    shown = [order[round(q * (len(order) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
    images, labels = [], []
    for name, of_policy in by_policy.items():
        for i in shown:
            images.append(np.asarray(Image.open(folder / "pictures" / name / f"{i:04d}.png")))
            caption = f": {of_policy[i]['prompt']}" if name == "static-28" else " of the same noise"
            labels.append(f"{of_policy[i]['steps']} steps ({name}){caption}")
    labeled_grid(np.stack(images), labels, PICTURE)


def part(runs: list[dict[str, Any]]) -> str:
    return results_section(runs).removesuffix("\n")
