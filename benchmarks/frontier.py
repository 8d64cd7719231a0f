"""Quality against steps on tinyworld, over training seeds: one TPM with a dial, against the best fixed schedules.

    python benchmarks/frontier.py --seeds 0 1 2 3 4     trains, evaluates, writes docs/results/frontier.json (hours)
    python benchmarks/frontier.py --seeds 0 1 --set rl.updates=1 evaluation.prompts=4 ...   changes to the recipe

For every seed two TPMs are trained by the recipe tinyworld-dial.yaml: one that looks, and one that sees only the time,
which is the best fixed schedule that the same training finds at every number of steps. Both are set beside hand-made
grids at each quality of the dial by `tpdm eval`. Intervals are over training seeds and prompts at once.
Everything is resumable: what is trained and judged is not done again.
"""

import argparse
import json
import os
from importlib import resources
from pathlib import Path

import numpy as np

from tpdm.config import load_recipe
from tpdm.evals.run import evaluate, provenance
from tpdm.evals.statistics import paired_bootstrap, two_way_bootstrap
from tpdm.files import write_json
from tpdm.train.log import read_metrics
from tpdm.train.run import train

ROOT = Path(__file__).parents[1]
MEASURES = {"reward": "score", "accuracy": "accuracy", "residual": "residual"}


def run_seed(seed, folder, changes):
    """Rows of points.jsonl of one seed."""
    path = Path(str(resources.files("tpdm") / "recipes" / "tinyworld-dial.yaml"))

    def recipe(name, *more):
        place = [f"name={name}", f"output={folder / f'seed-{seed}' / name}", f"seed={seed}"]
        return load_recipe(path, [*place, *changes, *more])

    fixed, learned = recipe("fixed", "tpm.time_only=true"), recipe("tpm")
    for each in (fixed, learned):
        if not (Path(each.output) / "run.json").exists():
            train(each)
    judged = recipe("tpm", f"evaluation.tuned={fixed.output}/best", f"evaluation.controls={folder / 'controls'}")
    out = Path(judged.output) / "eval"
    if not (out / "summary.json").exists():
        evaluate(judged)
    return read_metrics(out / "points.jsonl"), judged


def column(rows, quality, policy, key):
    found = [row for row in rows if row["quality"] == quality and row["policy"].startswith(policy)]
    return np.asarray([row[key] for row in sorted(found, key=lambda row: row["index"])])


def compare(runs):
    """At each quality: steps of every seed, and what the TPM has beyond each control at as many steps."""
    points = []
    for quality in sorted({row["quality"] for row in runs[0]}):
        names = {row["policy"] for row in runs[0] if row["quality"] == quality and "equal steps" in row["policy"]}
        point = {"quality": quality, "steps": [float(column(r, quality, "tpdm", "steps").mean()) for r in runs]}
        for name in sorted(names):
            for label, key in MEASURES.items():
                tables = [column(r, quality, "tpdm", key) - column(r, quality, name, key) for r in runs]
                whole = len(tables) > 1 and len({len(t) for t in tables}) == 1
                point[f"{label} minus {name}"] = {
                    "all": two_way_bootstrap(np.stack(tables)) if whole else None,
                    "seeds": [paired_bootstrap(t) for t in tables if len(t)],
                }
        points.append(point)
    return points


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "frontier.json")
    chosen = parser.parse_args()
    out, _ = chosen.out.resolve(), os.chdir(ROOT)
    runs = [run_seed(seed, chosen.runs, chosen.set) for seed in chosen.seeds]
    points = compare([rows for rows, _ in runs])
    write_json(out, {"seeds": chosen.seeds, "points": points, **provenance(runs[0][1])})
    for point in points:
        print(f"quality {point['quality']:g}: steps {np.mean(point['steps']):.1f}")
        for name, found in point.items():
            if isinstance(found, dict):
                print(f"  {name:60s} {found['all'] or found['seeds'][0]}")
    print(json.dumps({"written": str(out.name)}))


if __name__ == "__main__":
    main()
