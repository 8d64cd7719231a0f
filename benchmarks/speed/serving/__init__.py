"""Serving: throughput, latency and equality of step-level batches compared with static ones, on the same requests.

Without options it measures throughput and latency on tinyworld. --shape small has random weights and a denoiser that is
most of the work; --shape sd3-medium needs a GPU. --latency measures only those cells again that --loads, --arrivals and
--ways name. --mixes compares each request alone, through `tpdm sample` and in random mixes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.serving import tables
from benchmarks.speed.serving.assigned import SERVED
from benchmarks.speed.serving.bench import ARRIVALS, WAYS, Bench, latency, saturated
from benchmarks.speed.serving.mixes import try_mixes
from tpdm.cli.demo import demo_recipe
from tpdm.evaluation.summary import provenance

LOADS = (0.5, 0.8, 1.1)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=list(SERVED), default="tinyworld")
    parser.add_argument("--sizes", type=int, nargs="*", help="sides of the images in pixels, one run for each")
    parser.add_argument("--device", help="torch device; the GPU if there is one")
    parser.add_argument("--force", action="store_true", help="run a shape for GPUs on another device")
    parser.add_argument("--tpm", default="tinyworld", help="folder of a TPM; the embedded one by default")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--slots", type=int, default=8, help="slots of the engine, and images of a static batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS)
    parser.add_argument("--latency", action="store_true", help="measure latency alone, of a shape that has results")
    parser.add_argument("--arrivals", nargs="*", choices=ARRIVALS, default=ARRIVALS, help="arrivals of the latency")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="ways of the latency")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixes", type=int, default=0, help="try N random mixes instead, on tinyworld")


def results(chosen: argparse.Namespace) -> str:
    return "docs/results/" + ("serving.json" if chosen.shape == "tinyworld" else f"serving-{chosen.shape}.json")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """The results of the file, with those that were measured now."""
    device = choose_device(chosen)
    facts = json.loads(chosen.file.read_text("utf-8")) if chosen.file.exists() else {}
    here = {"shape": chosen.shape, "backbone": SERVED[chosen.shape].words, "seed": chosen.seed, **machine(device)}
    if chosen.latency:  # the rest of the results keeps its revision
        return facts | remeasure(chosen, device, facts, here["git_revision"])
    if not chosen.mixes:
        return facts | here | measure_sizes(chosen, device)
    bench = Bench("tinyworld", 64, chosen.tpm, chosen.slots, chosen.images, chosen.seed, device)
    with tempfile.TemporaryDirectory() as folder:
        return facts | here | {"mixes": try_mixes(bench, chosen.mixes, Path(folder))}


def sections(facts: dict[str, Any], folder: Path) -> dict[str, str]:
    return tables.sections(facts["shape"], facts)


def broken(facts: dict[str, Any]) -> list[str]:
    differing = facts.get("mixes", {}).get("steps_differ", 0)
    return [f"{differing} images of random mixes take other steps than alone"] if differing else []


def choose_device(chosen: argparse.Namespace) -> str:
    """The device, or an exit with an error if the shape is not for it."""
    device: str = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if SERVED[chosen.shape].accelerator and not device.startswith("cuda") and not chosen.force:
        raise SystemExit(f"--shape {chosen.shape} takes hours on {device}. It needs a GPU. Pass --force to run it.")
    return device


def machine(device: str) -> dict[str, Any]:
    facts = provenance(demo_recipe(Path("runs/bench"), 0))
    return facts | ({"hardware": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {})


def measure_sizes(chosen: argparse.Namespace, device: str) -> dict[str, Any]:
    """Throughput and latency at every size."""
    runs = []
    for side in chosen.sizes or SERVED[chosen.shape].sides:
        bench = Bench(chosen.shape, side, chosen.tpm, chosen.slots, chosen.images, chosen.seed, device)
        found = saturated(bench, chosen.repeats)
        capacity = found["ways"]["static"]["per_second"]
        waited = latency(bench, capacity, chosen.loads, chosen.arrivals, chosen.ways)
        runs.append({"side": side, "saturated": found, "capacity": capacity, "latency": waited})
    return {"images": chosen.images, "slots": chosen.slots, "repeats": chosen.repeats, "runs": runs}


def remeasure(chosen: argparse.Namespace, device: str, facts: dict[str, Any], revision: str | None) -> dict[str, Any]:
    """Latency alone, at the capacity of the results; cells that are measured again replace the older ones."""
    if "runs" not in facts:
        raise SystemExit(
            "--latency needs the capacity of earlier results. There are none. Run without --latency first."
        )
    runs = []
    for run in facts["runs"]:
        if chosen.sizes and run["side"] not in chosen.sizes:
            runs.append(run)
            continue
        bench = Bench(chosen.shape, run["side"], chosen.tpm, facts["slots"], chosen.images, chosen.seed, device)
        found = latency(bench, run["capacity"], chosen.loads, chosen.arrivals, chosen.ways)
        anew = {cell(row): {**row, "revision": revision} for row in found}
        older = [{"images": facts["images"], **row} for row in run["latency"]]
        kept = [anew.pop(cell(row), row) for row in older]
        runs.append(run | {"latency": [*kept, *anew.values()]})
    return {"runs": runs}


def cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["arrivals"], row["load"], row["way"]
