"""What it is worth that new images enter a rollout where finished ones leave, on the embedded model.

    python benchmarks/rollout_ways.py

The images of one update of the shipped TPM, in batches that wait for their slowest image (`rl.rollout=static`) and
through as many places that never stay empty (`continuous`), in turn. Calls of the denoiser say what is won where a call
takes as long with many rows as with few; CPU seconds say it for one core, where time follows rows. Writes
docs/results/rollout-ways.json.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tpdm.core.io import write_json
from tpdm.core.seeding import derive_seed
from tpdm.data.prompts import load_source
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.policies.pretrained import load_policy
from tpdm.sampling.base import SampleBatch
from tpdm.sampling.samplers import ContinuousSampler, PipelineSampler
from tpdm.tinyworld.builtin import WEIGHTS

ROOT = Path(__file__).parents[1]


class Counter:
    """Calls of the denoiser and their rows, while a rollout runs."""

    def __init__(self, pipe: Any) -> None:
        self.calls = self.rows = 0
        pipe.transformer.register_forward_hook(self._count)

    def _count(self, denoiser: Any, args: Any, output: Any) -> None:
        self.calls += 1
        self.rows += len(output[0])

    def during(self, run: Callable[[], SampleBatch]) -> tuple[dict[str, float], SampleBatch]:
        self.calls = self.rows = 0
        began = time.process_time()
        made = run()
        return {"calls": self.calls, "rows": self.rows, "seconds": time.process_time() - began}, made


def measure(images: int, batch: int, repeats: int) -> dict[str, Any]:
    pipe = load_pipeline("tinyworld", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    attached, arguments = attach(pipe, load_policy(WEIGHTS / "tpm")), call_defaults("tinyworld")
    prompts = [prompt.text for prompt in load_source("tinyworld", limit=images)]
    seeds, draws = ([derive_seed(0, stream, i) for i in range(len(prompts))] for stream in (0, 1))
    ways = {
        "waiting": PipelineSampler(attached, batch, arguments),
        "continuous": ContinuousSampler(attached, batch, arguments),
    }
    counter, found = Counter(pipe), {name: list[dict[str, float]]() for name in ways}
    steps: dict[str, list[int]] = {}
    for _ in range(repeats + 1):  # the first round warms up
        for name, sampler in ways.items():
            facts, made = counter.during(lambda sampler=sampler: sampler(prompts, seeds, draws, record=True))
            found[name].append(facts)
            steps[name] = made.steps
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(found["waiting"][1:], found["continuous"][1:], strict=True)]
    return {
        "images": len(prompts),
        "at_once": batch,
        "steps_mean": statistics.mean(steps["waiting"]),
        "steps_max": max(steps["waiting"]),
        "images_whose_steps_differ": sum(a != b for a, b in zip(*steps.values(), strict=True)),
        "calls": {name: rows[-1]["calls"] for name, rows in found.items()},
        "rows": {name: rows[-1]["rows"] for name, rows in found.items()},
        "cpu_time_ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--printed", action="store_true", help="print, write nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    facts = measure(chosen.images, chosen.batch, chosen.repeats)
    print(json.dumps(facts, indent=2))
    if not chosen.printed:
        write_json(ROOT / "docs" / "results" / "rollout-ways.json", facts)


if __name__ == "__main__":
    main()
