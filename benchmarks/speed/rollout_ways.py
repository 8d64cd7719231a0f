"""What it is worth that new images enter a rollout where finished ones leave, on the embedded model.

The images of one update of the shipped TPM are made in turn by batches that wait for their slowest image
(`rl.rollout=static`) and by as many slots that are never empty (`continuous`). Calls of the denoiser show the gain
where a call takes the same time for any number of rows. CPU seconds show it for one core, where time follows rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import torch

from benchmarks.timing import hardware, in_turns, ratios, spread
from tpdm.core.seeding import derive_seed
from tpdm.data.prompts import load_source
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.policies.pretrained import load_policy
from tpdm.sampling.base import SampleBatch, SampleRequest
from tpdm.sampling.samplers import ContinuousSampler, PipelineSampler
from tpdm.tinyworld.builtin import WEIGHTS


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


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    pipe = load_pipeline("tinyworld", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    attached, arguments = attach(pipe, load_policy(WEIGHTS / "tpm")), call_defaults("tinyworld")
    prompts = [prompt.text for prompt in load_source("tinyworld", limit=chosen.images)]
    seeds, draws = ([derive_seed(0, stream, i) for i in range(len(prompts))] for stream in (0, 1))
    ways = {
        "waiting": PipelineSampler(attached, chosen.batch, arguments),
        "continuous": ContinuousSampler(attached, chosen.batch, arguments),
    }
    counter = Counter(pipe)
    request = SampleRequest(prompts, seeds, draws, record=True)
    runs = {name: partial(counter.during, partial(way, request)) for name, way in ways.items()}
    turns = in_turns(runs, chosen.repeats)
    steps = {name: found[-1][1].steps for name, found in turns.items()}
    seconds = {name: [facts["seconds"] for facts, _ in found] for name, found in turns.items()}
    return {
        "images": len(prompts),
        "at_once": chosen.batch,
        "steps_mean": fmean(steps["waiting"]),
        "steps_max": max(steps["waiting"]),
        "images_whose_steps_differ": sum(a != b for a, b in zip(*steps.values(), strict=True)),
        **{key: {name: found[-1][0][key] for name, found in turns.items()} for key in ("calls", "rows")},
        "cpu_time_ratio": spread(ratios(seconds["continuous"], seconds["waiting"])),
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
    }


def broken(facts: dict[str, Any]) -> list[str]:
    differing = facts["images_whose_steps_differ"]
    return [f"{differing} images take other steps in continuous rollouts"] if differing else []
