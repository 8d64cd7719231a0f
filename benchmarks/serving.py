"""Serving: throughput, latency and equality of step-level batches beside static ones, on the same prompts and seeds.

    python benchmarks/serving.py                  throughput and latency on tinyworld, about eight minutes on two cores
    python benchmarks/serving.py --mixes 200      the same request alone, through `tpdm sample` and in random mixes
    python benchmarks/serving.py --render         the tables of docs/serving.md from docs/results/serving.json alone
    python benchmarks/serving.py --tpm FOLDER     another TPM (`make demo` trains one into runs/demo/train/best)

Writes docs/results/serving.json and the tables of docs/serving.md; with --out FILE that file alone.
"""

import argparse
import json
import random
import tempfile
from collections import deque
from pathlib import Path
from statistics import median

import numpy as np

from serving_parts.load import at_once, bursts, poisson
from serving_parts.mixes import try_mixes
from serving_parts.tables import page
from serving_parts.ways import all_rows_computed, serve_batches, serve_steps
from tpdm.demo import demo_recipe
from tpdm.evals.run import provenance
from tpdm.files import write_json, write_text
from tpdm.pipelines.attach import attach
from tpdm.pipelines.load import call_defaults, load_pipeline
from tpdm.serve.engine import PipelineEngine
from tpdm.serve.requests import ImageRequest
from tpdm.tinyworld.captions import make_captions

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results" / "serving.json", ROOT / "docs" / "serving.md"
LOADS = (0.5, 0.8, 1.1)


class Bench:
    """The pipeline, the ways to serve it, and requests of mixed difficulty."""

    def __init__(self, tpm, slots, images, seed):
        self.pipe, self.tpm, self.slots, self.seed = load_pipeline("tinyworld", device="cpu"), tpm, slots, seed
        self.attached = attach(self.pipe, tpm, defaults=call_defaults("tinyworld"))
        captions = make_captions(images, seed)  # of all levels, one object to six
        random.Random(seed).shuffle(captions)
        self.requests = [ImageRequest(prompt, seed + i) for i, prompt in enumerate(captions)]

    def draw(self, requests):
        return self.attached([r.prompt for r in requests], seeds=[r.seed for r in requests])

    def serve(self, way, arrivals):
        if way == "steps":
            engine = PipelineEngine(
                self.pipe, self.tpm, slots=self.slots, queue_limit=len(arrivals), defaults=call_defaults("tinyworld")
            )
            try:
                return serve_steps(engine, arrivals)
            finally:
                engine.close()
        if way == "static":
            with all_rows_computed():
                return serve_batches(self.draw, arrivals, self.slots)
        return serve_batches(self.draw, arrivals, 1 if way == "alone" else self.slots)


def saturated(bench, repeats):
    """Everything is there at the start: images per second, side by side, in turn."""
    arrivals = at_once(bench.requests)
    runs = {way: deque() for way in ("alone", "static", "cut", "steps")}
    for repeat in range(repeats + 1):
        for way, kept in runs.items():
            served = bench.serve(way, arrivals)
            if repeat:  # the first round warms up
                kept.append(served)
    steps = runs["static"][0].steps
    batches = [max(steps[i : i + bench.slots]) for i in range(0, len(steps), bench.slots)]
    bound = float(np.mean(batches) / np.mean(steps))
    ways = {}
    for way, kept in runs.items():
        ratios = [static.seconds / one.seconds for one, static in zip(kept, runs["static"], strict=True)]
        ways[way] = {
            "per_second": len(arrivals) / median(one.seconds for one in kept),
            "ratio": [min(ratios), median(ratios), max(ratios)],
            "processor": median(one.processor for one in kept) / len(arrivals),
            "rows": kept[0].rows / len(arrivals),
            "calls": kept[0].calls / len(arrivals),
            "steps": float(np.mean(kept[0].steps)),
        }
    return {"ways": ways, "bound": bound, "of_bound": [ratio / bound for ratio in ways["steps"]["ratio"]]}


def latency(bench, capacity, loads):
    """Open loop at shares of what static batches can do."""
    rows = []
    for load in loads:
        rate = load * capacity
        kinds = {
            "Poisson": poisson(bench.requests, rate, bench.seed),
            f"bursts of {2 * bench.slots}": bursts(bench.requests, rate, 2 * bench.slots, bench.seed),
        }
        for kind, arrivals in kinds.items():
            for way in ("alone", "static", "cut", "steps"):
                served = bench.serve(way, arrivals)
                p50, p95 = np.percentile(served.latency, [50, 95])
                steps = float(np.mean(served.steps))
                row = {"arrivals": kind, "load": load, "way": way, "p50": float(p50), "p95": float(p95), "steps": steps}
                rows.append(row)
                print("{arrivals:14s} {load:.1f} {way:7s} p50 {p50:.2f} s  p95 {p95:.2f} s".format(**row), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tpm", default="tinyworld", help="a TPM's folder; the embedded one if left out")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--slots", type=int, default=8, help="images at once, of batches and of the engine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixes", type=int, default=0, help="try so many random mixes instead")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--out", type=Path, help="write here, and no page")
    asked = parser.parse_args()
    results = asked.out or RESULTS
    facts = json.loads(results.read_text("utf-8")) if results.exists() else {}
    if not asked.render:
        bench = Bench(asked.tpm, asked.slots, asked.images, asked.seed)
        facts |= {"backbone": "tinyworld", "seed": asked.seed, **provenance(demo_recipe(ROOT / "runs" / "bench", 0))}
        if asked.mixes:
            with tempfile.TemporaryDirectory() as folder:
                facts["mixes"] = try_mixes(bench, asked.mixes, Path(folder))
        else:
            facts |= {"images": asked.images, "slots": asked.slots, "repeats": asked.repeats}
            facts["saturated"] = saturated(bench, asked.repeats)
            facts["capacity"] = facts["saturated"]["ways"]["static"]["per_second"]
            facts["latency"] = latency(bench, facts["capacity"], asked.loads)
        write_json(results, facts)
    if asked.out is None:
        write_text(PAGE, page(PAGE.read_text("utf-8"), facts))
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
