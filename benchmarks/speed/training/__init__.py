"""How fast a TPM is trained, compared with a plain loop with the same numbers and over processes; what memory it needs.

Both loops get the same prompts, seeds, draws and TPM, in turn. Ratios are of the same turn, median and range over the
repetitions. On the embedded model the TPMs are those of one training by the demo's recipe, every 20 updates from the
untrained one, whose schedules are nearly equal, to the last one, whose images take one to twenty steps. A whole
training is the integral over its updates. That training is done first, below runs/, and resumes where it stopped.
Run it with OMP_NUM_THREADS=1. Results of other shapes are only printed: --shape sd3-medium needs a GPU, --shape tiny
takes seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from benchmarks.speed.training.bench import PASSES, SHAPES, Bench
from benchmarks.speed.training.plain_loop import Captured
from benchmarks.speed.training.replay import memory_rows
from benchmarks.speed.training.table import part as part
from benchmarks.timing import Clock, hardware, spread, versions
from tpdm.core.device import resolve_device
from tpdm.policies.tpm import TimePredictionModule
from tpdm.training.distributed.context import init_distributed


def compare(bench: Bench, start: TimePredictionModule, update: int, repeats: int) -> dict[str, Any]:
    """Both loops in turns, from the same weights each time."""
    captured = Captured(bench.pipe.transformer)
    rows, seconds = [], []
    for _ in range(repeats + 1):  # the first one warms up
        ours, plain = copy.deepcopy(start), copy.deepcopy(start)
        fast, slow = Clock(), Clock()
        steps, replay = bench.ours(ours, fast)
        plain_steps, features = bench.plain(plain, slow, captured)
        apart = [
            float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
        ]
        rows.append({"equal_steps": steps == plain_steps, "weights_apart": max(apart)})
        seconds.append({"ours": fast.seconds, "plain": slow.seconds})
    captured.remove()
    return {
        "update": update,
        "trajectories": len(steps),
        "steps_mean": sum(steps) / len(steps),
        "steps_max": max(steps),
        "equal_steps": all(row["equal_steps"] for row in rows),
        "weights_apart": max(row["weights_apart"] for row in rows),
        "replay_bytes": replay,
        "plain_bytes": features,
        "seconds": seconds[1:],
        **ratios(seconds[1:], len(steps)),
    }


def ratios(seconds: list[dict[str, dict[str, float]]], trajectories: float) -> dict[str, Any]:
    """How much faster ours is, in all and in parts, over repetitions; ``seconds`` of each loop by what they went to."""
    whole = [{loop: sum(parts.values()) for loop, parts in once.items()} for once in seconds]
    return {
        "trajectories_per_second": spread([trajectories / once["ours"] for once in whole]),
        "plain_trajectories_per_second": spread([trajectories / once["plain"] for once in whole]),
        "ratio": spread([once["plain"] / once["ours"] for once in whole]),
        **{
            f"{stage}_ratio": spread([once["plain"][stage] / once["ours"][stage] for once in seconds])
            for stage in ("rollout", "update")
        },
    }


def whole_training(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """What all updates of a training take, by the trapezoid rule over its stages."""
    at = [stage["update"] for stage in stages]
    weights = [(after - before) / 2 for before, after in zip([at[0], *at[:-1]], [*at[1:], at[-1]], strict=True)]
    repeats = len(stages[0]["seconds"])
    seconds = [
        {
            loop: {
                phase: sum(w * s["seconds"][r][loop][phase] for w, s in zip(weights, stages, strict=True))
                for phase in ("rollout", "reward", "update")
            }
            for loop in ("ours", "plain")
        }
        for r in range(repeats)
    ]
    steps = sum(w * s["steps_mean"] for w, s in zip(weights, stages, strict=True)) / sum(weights)
    found = ratios(seconds, sum(w * s["trajectories"] for w, s in zip(weights, stages, strict=True)))
    return {"updates": at[-1], "steps_mean": steps, "seconds": seconds, **found}


def shares(bench: Bench, start: TimePredictionModule, repeats: int) -> dict[str, float]:
    """Where the time of our update goes: shares of the whole."""
    total, found = 0.0, Clock()
    handles = [*found.around("denoiser", bench.pipe.transformer), *found.around("decode", bench.pipe.vae.decoder)]
    for _ in range(repeats):
        policy = copy.deepcopy(start)
        whole = Clock()
        whole.timed("all", bench.ours, policy, found)
        total += whole.seconds["all"]
    for handle in handles:
        handle.remove()
    named = {name: found.seconds[name] / total for name in ("denoiser", "decode", "reward", "update")}
    return {**named, "rest": 1.0 - sum(named.values())}


def worker(shape: str, device: str, updates: int) -> None:
    """One of several processes: prints what the first one measured, as JSON."""
    with init_distributed(device) as team:
        bench = Bench(shape, device, Path("unused"))
        start = bench.shipped() if shape == "tinyworld" else bench.untrained()
        bench.ours(copy.deepcopy(start), Clock(), team)  # warms up
        team.wait()
        clock = Clock()
        for _ in range(updates):
            bench.ours(copy.deepcopy(start), clock, team)
        team.wait()
        # Between two meetings of the processes the slowest one sets the pace.
        makes = team.all_gather_object(clock.seconds["rollout"] + clock.seconds["reward"])
        learns = team.all_gather_object(clock.seconds["update"])
        if team.is_main_process:
            images = updates * len(bench.prompts)
            facts = {
                "trajectories_per_second": images / (max(makes) + max(learns)),
                "seconds_of_making": makes,
                "seconds_of_learning": learns,
            }
            print(json.dumps(facts), flush=True)


def scaling(shape: str, device: str, repeats: int, updates: int) -> dict[str, Any]:
    """One and two processes in turns, one thread each, the same update."""
    rows: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(repeats):
        for size, found in rows.items():
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
            words = ["-m", "benchmarks.speed", "training", "--print", "--worker", "--shape", shape, "--device", device]
            words += ["--updates", str(updates)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
            finished = subprocess.run(
                [sys.executable, *launcher, *words], env=environment, capture_output=True, text=True, check=True
            )
            found.append(json.loads(finished.stdout.strip().splitlines()[-1]))
    key = "trajectories_per_second"
    pairs = zip(rows[1], rows[2], strict=True)
    return {"efficiency": spread([two[key] / one[key] / 2 for one, two in pairs]), "one": rows[1], "two": rows[2]}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tinyworld")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/training-stages"), help="folder of the demo's training")
    parser.add_argument("--updates", type=int, default=2, help="timed by each process of the scaling runs")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="2 measures scaling, too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def results(chosen: argparse.Namespace) -> str | None:
    return "docs/results/training.json" if chosen.shape == "tinyworld" and chosen.processes == 2 else None


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    logging.set_verbosity_error()  # it asks for another way to cast weights that are random anyway
    device = resolve_device(chosen.device)
    if chosen.worker:
        worker(chosen.shape, device, chosen.updates)
        raise SystemExit
    bench = Bench(chosen.shape, device, chosen.runs)
    updates = bench.updates if chosen.shape == "tinyworld" else [0]
    stages = {update: bench.stage(update) for update in updates}
    compared = [compare(bench, policy, update, chosen.repeats) for update, policy in stages.items()]
    facts: dict[str, Any] = {
        "shape": chosen.shape,
        "passes": PASSES,
        "repeats": chosen.repeats,
        "beside_a_plain_loop": compared,
        "shares": {update: shares(bench, stages[update], chosen.repeats) for update in updates},
        "memory": memory_rows(),
        "versions": versions(),
        "hardware": hardware(device),
    }
    if chosen.shape == "tinyworld":
        facts["whole"] = whole_training(compared)
        if chosen.processes == 2:
            facts["scaling"] = scaling(chosen.shape, device, chosen.repeats, chosen.updates)
    return facts


def broken(facts: dict[str, Any]) -> list[str]:
    differing = [row["update"] for row in facts["beside_a_plain_loop"] if not row["equal_steps"]]
    return [f"the plain loop took other steps after update {update}" for update in differing]
