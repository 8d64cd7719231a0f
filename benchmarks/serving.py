"""Serving: throughput, latency and equality of step-level batches beside static ones, on the same prompts and seeds.

    python benchmarks/serving.py                       throughput and latency on tinyworld
    python benchmarks/serving.py --shape small         random weights, a denoiser that is most of the work
    python benchmarks/serving.py --shape sd3-medium    on a GPU, at two resolutions; --sizes 1024 for one
    python benchmarks/serving.py --shape small --images 200 --latency --loads 0.5 --arrivals poisson    cells anew
    python benchmarks/serving.py --mixes 200           the same request alone, through `tpdm sample` and in random mixes
    python benchmarks/serving.py --render              the tables of docs/serving.md from docs/results alone
    python benchmarks/serving.py --tpm FOLDER          another TPM (`make demo` trains one into runs/demo/train/best)

Writes docs/results/serving.json (serving-SHAPE.json) and the tables of docs/serving.md; with --out FILE that file
alone.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from serving_parts.bench import ARRIVALS, WAYS, Bench, latency, saturated
from serving_parts.mixes import try_mixes
from serving_parts.tables import page
from shapes import SERVED
from tpdm.cli.demo import demo_recipe
from tpdm.core.io import write_json, write_text
from tpdm.evaluation.summary import provenance

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "serving.md"
LOADS = (0.5, 0.8, 1.1)


def results_file(shape):
    return RESULTS / ("serving.json" if shape == "tinyworld" else f"serving-{shape}.json")


def all_results():
    """Of every shape that has some."""
    files = {shape: results_file(shape) for shape in SERVED}
    return {shape: json.loads(file.read_text("utf-8")) for shape, file in files.items() if file.exists()}


def choose_device(asked):
    """The device, or an end with one sentence where the shape is not for it."""
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if SERVED[asked.shape].accelerator and not device.startswith("cuda") and not asked.force:
        raise SystemExit(
            f"got --shape {asked.shape} on {device}, expected a GPU: it takes hours there; or pass --force."
        )
    return device


def machine(device):
    facts = provenance(demo_recipe(ROOT / "runs" / "bench", 0))
    if device.startswith("cuda"):
        facts["hardware"] = torch.cuda.get_device_name(device)
    return facts


def measure(asked, device):
    """Throughput and latency at every size."""
    runs = []
    for side in asked.sizes or SERVED[asked.shape].sides:
        bench = Bench(asked.shape, side, asked.tpm, asked.slots, asked.images, asked.seed, device)
        found = saturated(bench, asked.repeats)
        capacity = found["ways"]["static"]["per_second"]
        waited = latency(bench, capacity, asked.loads, asked.arrivals, asked.ways)
        runs.append({"side": side, "saturated": found, "capacity": capacity, "latency": waited})
    return {"images": asked.images, "slots": asked.slots, "repeats": asked.repeats, "runs": runs}


def remeasure(asked, device, facts, revision):
    """Latency alone, at the capacity that the results tell; cells that are measured again replace the older ones."""
    if "runs" not in facts:
        raise SystemExit("got --latency without earlier results, expected their capacity: run it without first.")
    runs = []
    for run in facts["runs"]:
        if asked.sizes and run["side"] not in asked.sizes:
            runs.append(run)
            continue
        bench = Bench(asked.shape, run["side"], asked.tpm, facts["slots"], asked.images, asked.seed, device)
        found = latency(bench, run["capacity"], asked.loads, asked.arrivals, asked.ways)
        anew = {cell(row): {**row, "revision": revision} for row in found}
        older = [{"images": facts["images"], **row} for row in run["latency"]]
        kept = [anew.pop(cell(row), row) for row in older]
        runs.append(run | {"latency": [*kept, *anew.values()]})
    return {"runs": runs}


def cell(row):
    return row["arrivals"], row["load"], row["way"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SERVED), default="tinyworld")
    parser.add_argument("--sizes", type=int, nargs="*", help="sides of the images in pixels, one run for each")
    parser.add_argument("--device", help="of torch; the GPU where there is one")
    parser.add_argument("--force", action="store_true", help="a shape for GPUs on something else")
    parser.add_argument("--tpm", default="tinyworld", help="a TPM's folder; the embedded one if left out")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--slots", type=int, default=8, help="images at once, of batches and of the engine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS)
    parser.add_argument("--latency", action="store_true", help="latency alone, of a shape that has results")
    parser.add_argument("--arrivals", nargs="*", choices=ARRIVALS, default=ARRIVALS, help="of the latency")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="of the latency")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixes", type=int, default=0, help="try so many random mixes instead, on tinyworld")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--out", type=Path, help="write here, and no page")
    asked = parser.parse_args()
    results = asked.out or results_file(asked.shape)
    if not asked.render:
        device = choose_device(asked)
        facts = json.loads(results.read_text("utf-8")) if results.exists() else {}
        here = {"shape": asked.shape, "backbone": SERVED[asked.shape].words, "seed": asked.seed, **machine(device)}
        if asked.latency:  # what was not measured again is still of its own revision
            facts |= remeasure(asked, device, facts, here["git_revision"])
        elif asked.mixes:
            facts |= here
            bench = Bench("tinyworld", 64, asked.tpm, asked.slots, asked.images, asked.seed, device)
            with tempfile.TemporaryDirectory() as folder:
                facts["mixes"] = try_mixes(bench, asked.mixes, Path(folder))
        else:
            facts |= here | measure(asked, device)
        write_json(results, facts)
        print(json.dumps(facts, indent=1))
    if asked.out is None:
        write_text(PAGE, page(PAGE.read_text("utf-8"), all_results()))


if __name__ == "__main__":
    main()
