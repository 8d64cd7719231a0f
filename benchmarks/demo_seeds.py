"""The demo over several training seeds, and the tables of the documentation that come from it.

    python benchmarks/demo_seeds.py --seeds 0 1 2      runs the missing ones, then writes docs/results and docs/demo.md
    python benchmarks/demo_seeds.py --render           writes the table of docs/demo.md from docs/results alone

A run is `tpdm demo --seed N`; its summary is kept without the per-image lists, and its validations as the curve that
recipes/tinyworld.yaml shows.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from tpdm.cli.demo import run_demo
from tpdm.core.io import write_json
from tpdm.evaluation.seeds import render_results
from tpdm.tinyworld.showcase import labeled_grid

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "demo-seeds.json"
CURVES = ROOT / "docs" / "results" / "demo-curves.json"
PAGE = ROOT / "docs" / "demo.md"
PICTURE = ROOT / "docs" / "images" / "demo.png"


def collect(seeds):
    runs = []
    for seed in seeds:
        folder = Path("runs") / f"demo-seed-{seed}"  # relative, for the summary tells the command
        if not (folder / "summary.json").exists() or "command" not in (folder / "summary.json").read_text():
            run_demo(folder, seed)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        summary.pop("difficulty")
        runs.append(summary)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def collect_curves(seeds):
    """Validations of every run (update, mean steps, mean score), steps of the last one, and what tells the run."""
    curves = []
    for seed in seeds:
        folder = ROOT / "runs" / f"demo-seed-{seed}"
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        kept = {key: summary[key] for key in ("git_revision", "recipe_hash", "hardware", "versions")}
        rows = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text("utf-8").splitlines()]
        points = [
            {"update": row["update"], "steps": row["steps_mean"], "score": row["score_mean"]}
            for row in rows
            if row["kind"] == "validation"
        ]
        last = [row["steps_histogram"] for row in rows if row["kind"] == "validation"][-1]
        curves.append({"seed": seed, **kept, "validations": points, "last_steps_histogram": last})
    write_json(CURVES, curves)


def draw(folder):
    """Five images from the fewest to the most steps of the TPM (evenly spaced ranks, ties by index), both ways."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    by_policy = {name: [r for r in rows if r["policy"] == name] for name in ("static-28", "tpdm")}
    order = sorted(range(len(by_policy["tpdm"])), key=lambda i: (by_policy["tpdm"][i]["steps"], i))
    chosen = [order[round(q * (len(order) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
    images, labels = [], []
    for name, of_policy in by_policy.items():
        for i in chosen:
            images.append(np.asarray(Image.open(folder / "pictures" / name / f"{i:04d}.png")))
            caption = f": {of_policy[i]['prompt']}" if name == "static-28" else " of the same noise"
            labels.append(f"{of_policy[i]['steps']} steps ({name}){caption}")
    labeled_grid(np.stack(images), labels, PICTURE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--render", action="store_true")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    if not chosen.render:
        collect(chosen.seeds)
        collect_curves(chosen.seeds)
        draw(ROOT / "runs" / f"demo-seed-{chosen.seeds[0]}")
    PAGE.write_text(
        render_results(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
