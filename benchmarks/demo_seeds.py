"""The demo over several training seeds, and the tables of the documentation that come from it.

    python benchmarks/demo_seeds.py --seeds 0 1 2      runs the missing ones, then writes docs/results and the README
    python benchmarks/demo_seeds.py --render           writes the README's table from docs/results alone

A run is `tpdm demo --seed N`; its summary is kept without the per-image lists.
"""

import argparse
import json
from pathlib import Path

from tpdm.demo import run_demo
from tpdm.evals.seeds import render_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "demo-seeds.json"
README = ROOT / "README.md"


def collect(seeds):
    runs = []
    for seed in seeds:
        folder = ROOT / "runs" / f"demo-seed-{seed}"
        if not (folder / "summary.json").exists() or "command" not in (folder / "summary.json").read_text():
            run_demo(folder, seed)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        summary.pop("difficulty")
        runs.append(summary)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--render", action="store_true")
    chosen = parser.parse_args()
    if not chosen.render:
        collect(chosen.seeds)
    README.write_text(
        render_results(README.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
