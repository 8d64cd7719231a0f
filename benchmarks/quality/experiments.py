"""The table of experiments: what each trains, over which seeds, what it is compared with, and what it writes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import Benchmark

CONDITIONED = "tinyworld-quality"  # the recipe of one TPM for a range of gammas
STATIC, EULER = "static-28", "static-28, euler"
GRID, TUNED, DEFAULT = "best grid, equal steps", "tuned by the same training, equal steps", "default, equal steps"


@dataclass(frozen=True)
class Experiment(Benchmark):
    """A benchmark that trains TPMs on tinyworld.

    Attributes:
        recipe: Shipped recipe of its trainings.
        overrides: Changes to that recipe, of all trainings.
        seeds: Training seeds.
        baselines: What the TPM is compared with on the same images, by the names in the results.
        runs: Folder of its trainings.
        picture: Figure that is drawn from the results, relative to the repository; "" for none.
    """

    recipe: str = CONDITIONED
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    baselines: tuple[str, ...] = ()
    runs: str = ""
    picture: str = ""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds seeds, changes and the folder of runs. With ``--seeds 0 --print`` a process may take each seed."""
        super().add_options(parser)
        parser.add_argument("--seeds", type=int, nargs="+", default=list(self.seeds), help="training seeds")
        parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to every recipe")
        parser.add_argument("--runs", type=Path, default=Path(self.runs), help="folder of the trainings")
        parser.add_argument("--keep", action="store_true", help="copy what was trained to runs/trained")
        if self.picture:
            parser.add_argument("--picture", type=Path, default=Path(self.picture), help="figure that is drawn")


def _experiment(name: str, measures: str, **more: Any) -> dict[str, Experiment]:
    usual = {
        "takes": "hours on two cores",
        "results": f"docs/results/{name}.json",
        "page": "frontier.md",
        "section": name.replace("_", " "),
        "runs": f"runs/{name}",
    }
    return {name: Experiment(measures=measures, **{**usual, **more})}


SHORT = ("rl.updates=80", "validation.every=10", "evaluation.prompts=1024")
NARROW = (
    "reward.gamma=0.9967",
    "reward.gamma_range=[0.994, 0.9985]",
    "tpm.init_steps_low_gamma=5",
    "tpm.init_steps=12",
)
EXPERIMENTS = {
    **_experiment(
        "frontier",
        "one TPM for all gammas compared with the best fixed schedules at every number of steps",
        baselines=(GRID, TUNED, DEFAULT, STATIC),
        picture="docs/images/frontier.png",
    ),
    **_experiment(
        "other_prompts",
        "whether the differences of frontier hold on other prompts, three times as many",
        baselines=(GRID, TUNED),
        runs="runs/frontier",
    ),
    **_experiment(
        "second_order",
        "how many steps of a second-order solver have the quality of 28 Euler steps",
        overrides=("sampling.solver=dpmpp_2m", *NARROW, "rl.updates=160"),
        baselines=(EULER, GRID),
    ),
    **_experiment(
        "stability",
        "whether the last TPM of a training of twice the updates is as good as its best; its worst images",
        recipe="tinyworld",
        overrides=("rl.updates=280",),
        baselines=(EULER,),
    ),
    **_experiment(
        "specialists", "one TPM for all gammas compared with TPMs trained for one gamma each", baselines=("specialist",)
    ),
    **_experiment(
        "ablations",
        "which choices of the training matter, one change at a time",
        page="ablations.md",
        recipe="tinyworld",
        overrides=SHORT,
        seeds=(0, 1, 2),
        baselines=("first variant of the axis",),
        picture="docs/images/ablations.png",
    ),
    **_experiment(
        "oracle", "how far the best schedule of every image is above the best one for all", baselines=("best grid",)
    ),
    **_experiment(
        "distillation",
        "whether a TPM that begins with the schedules of an oracle ends better",
        recipe="tinyworld",
        overrides=SHORT,
        seeds=(0, 1, 2),
        baselines=("trained",),
    ),
    **_experiment(
        "demo_seeds",
        "how the demo comes out over several training seeds",
        takes="minutes for each seed on two cores",
        results="docs/results/demo-seeds.json",
        page="demo.md",
        section="results",
        seeds=(0, 1, 2),
        runs="runs",
    ),
    **_experiment(
        "tinyworld",
        "what steps are worth in tinyworld, with the default schedule",
        takes="minutes on two cores",
        page="tinyworld.md",
        section="results",
        baselines=(STATIC,),
        runs="runs/bench",
    ),
}
