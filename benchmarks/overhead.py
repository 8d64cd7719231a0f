"""What the TPM adds to a call of the tinyworld pipeline, on this machine.

The same 14 fixed times run three ways in turn: the stock scheduler, the attached pipeline with a fixed list, and
the attached pipeline whose TPM is evaluated at every step (its answer is thrown away, so that the number of network
evaluations is equal). Ratios to the stock run, median and range over the repetitions.
"""

import json
import statistics
import time
from pathlib import Path

import torch

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

    def __init__(self, tpm, fixed):
        self.tpm, self.fixed = tpm, fixed

    def observe(self, features, t_B, index_B, row_B, change_B=None):
        return self.tpm.observe(features, t_B, index_B, row_B)

    def propose(self, observation, seeds):
        self.tpm.propose(observation, seeds)
        return self.fixed.propose(observation, seeds)


def main():
    pipe = load_pipeline("tinyworld", device="cpu")
    arguments = {**call_defaults("tinyworld"), "output_type": "latent"}
    widths = infer_feature_shapes(pipe, call_defaults("tinyworld"))
    tpm = TimePredictionModule(TPMConfig(widths.feature_channels, widths.temb_channels, channels=64, grid=4)).eval()
    fixed, prompts, seeds = (
        default_schedule(pipe, STEPS, call_defaults("tinyworld")),
        make_captions(BATCH),
        list(range(BATCH)),
    )
    listed = attach(pipe, fixed)
    learned = attach(pipe, Overruled(tpm, fixed), stop_below=0.0)

    def stock():
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        pipe(prompts, num_inference_steps=STEPS, generator=generators, **arguments)

    ways = {
        "stock": stock,
        "fixed list": lambda: listed(prompts, seeds=seeds, **arguments),
        "with TPM": lambda: learned(prompts, seeds=seeds, **arguments),
    }
    seconds = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    rows = []
    for name, times in seconds.items():
        ratios = [t / s for t, s in zip(times, seconds["stock"], strict=True)]
        row = {"way": name, "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        rows.append(row | {"ms_per_image_step": 1000 * statistics.median(times) / STEPS / BATCH})
        print("{way:12s} ratio {ratio:.3f} [{low:.3f}, {high:.3f}]  {ms_per_image_step:.2f} ms".format(**rows[-1]))
    out = Path("runs/bench/overhead.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"steps": STEPS, "batch": BATCH, "repeats": REPEATS, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
