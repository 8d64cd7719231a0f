"""What the TPM adds to a call of the tinyworld pipeline.

The same 14 fixed times run three ways in turn: the stock scheduler, the attached pipeline with a fixed list, and the
attached pipeline with a TPM at every step, whose answer is ignored so that the number of network evaluations is equal.
Ratios to the stock run, median and range over the repetitions.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.timing import in_turns, ratios, seconds_of, spread
from tpdm.core.types import Policy
from tpdm.evaluation.baselines import default_schedule
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.tinyworld.captions import make_captions

STEPS, BATCH, REPEATS = 14, 16, 9


class Overruled(Policy):
    """Evaluates a TPM, then follows a fixed list."""

    reads_features = True

    def __init__(self, tpm: Policy, fixed: Policy) -> None:
        self.tpm, self.fixed = tpm, fixed

    def observe(self, features: Any, t_B: Any, index_B: Any, row_B: Any, change_B: Any = None) -> Any:
        return self.tpm.observe(features, t_B, index_B, row_B)

    def propose(self, observation: Any, seeds: Any) -> Any:
        self.tpm.propose(observation, seeds)
        return self.fixed.propose(observation, seeds)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    pipe, call = load_pipeline("tinyworld", device="cpu"), call_defaults("tinyworld")
    widths = infer_feature_shapes(pipe, call)
    tpm = TimePredictionModule(TPMConfig(widths.feature_channels, widths.temb_channels, channels=64, grid=4)).eval()
    fixed = default_schedule(pipe, STEPS, call)
    listed, learned = attach(pipe, fixed), attach(pipe, Overruled(tpm, fixed), stop_below=0.0)
    prompts, seeds, arguments = make_captions(BATCH), list(range(BATCH)), {**call, "output_type": "latent"}

    def stock() -> Any:
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return pipe(prompts, num_inference_steps=STEPS, generator=generators, **arguments)

    ways = {
        "stock": stock,
        "fixed list": lambda: listed(prompts, seeds=seeds, **arguments),
        "with TPM": lambda: learned(prompts, seeds=seeds, **arguments),
    }
    timed = {name: partial(seconds_of, run) for name, run in ways.items()}
    rows = []
    for name, seconds in (found := in_turns(timed, REPEATS)).items():
        ratio = spread(ratios(seconds, found["stock"]))
        row = {"way": name, "ratio": ratio["median"], "low": ratio["low"], "high": ratio["high"]}
        rows.append(row | {"ms_per_image_step": 1000 * median(seconds) / STEPS / BATCH})
    return {"steps": STEPS, "batch": BATCH, "repeats": REPEATS, "rows": rows}
