"""The table of experiments: what each trains, over which seeds, what it is compared with, and what it writes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import Benchmark

CONDITIONED = "tinyworld-dial"  # the recipe of one TPM for a range of gammas
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


HOURS = "hours on two cores"
FRONTIER = {"page": "frontier.md", "runs": "runs/frontier"}
EXPERIMENTS = {
    "frontier": Experiment(
        "one TPM with a dial against the best fixed schedules at every number of steps",
        HOURS,
        "docs/results/frontier.json",
        **FRONTIER,
        section="frontier",
        baselines=(GRID, TUNED, DEFAULT, STATIC),
        picture="docs/images/frontier.png",
    ),
    "other_prompts": Experiment(
        "whether the differences of frontier hold on other prompts, three times as many",
        HOURS,
        "docs/results/other_prompts.json",
        **FRONTIER,
        section="other prompts",
        baselines=(GRID, TUNED),
    ),
    "second_order": Experiment(
        "how many steps of a second-order solver have the quality of 28 Euler steps",
        HOURS,
        "docs/results/second_order.json",
        "frontier.md",
        "second order",
        overrides=(
            "sampling.solver=dpmpp_2m",
            "reward.gamma=0.9967",
            "reward.gamma_range=[0.994, 0.9985]",
            "tpm.init_steps_low_gamma=5",
            "tpm.init_steps=12",
            "rl.updates=160",
        ),
        baselines=(EULER, GRID),
        runs="runs/second_order",
    ),
    "stability": Experiment(
        "whether the last TPM of a training of twice the updates is as good as its best; its worst images",
        HOURS,
        "docs/results/stability.json",
        "frontier.md",
        "stability",
        recipe="tinyworld",
        overrides=("rl.updates=280",),
        baselines=(EULER,),
        runs="runs/stability",
    ),
    "specialists": Experiment(
        "one TPM with a dial compared with TPMs trained for one gamma each",
        HOURS,
        "docs/results/specialists.json",
        "frontier.md",
        "specialists",
        baselines=("specialist",),
        runs="runs/specialists",
    ),
    "ablations": Experiment(
        "which choices of the training matter, one change at a time",
        HOURS,
        "docs/results/ablations.json",
        "ablations.md",
        "ablations",
        recipe="tinyworld",
        overrides=("rl.updates=80", "validation.every=10", "evaluation.prompts=1024"),
        seeds=(0, 1, 2),
        baselines=("first variant of the axis",),
        runs="runs/ablations",
        picture="docs/images/ablations.png",
    ),
    "oracle": Experiment(
        "how far the best schedule of every image is above the best one for all",
        HOURS,
        "docs/results/oracle.json",
        "frontier.md",
        "oracle",
        baselines=("best grid",),
        runs="runs/oracle",
    ),
    "distillation": Experiment(
        "whether a TPM that begins with the schedules of an oracle ends better",
        HOURS,
        "docs/results/distillation.json",
        "frontier.md",
        "distillation",
        recipe="tinyworld",
        overrides=("rl.updates=80", "validation.every=10", "evaluation.prompts=1024"),
        seeds=(0, 1, 2),
        baselines=("trained",),
        runs="runs/distillation",
    ),
    "demo_seeds": Experiment(
        "how the demo comes out over several training seeds",
        "minutes for each seed on two cores",
        "docs/results/demo-seeds.json",
        "demo.md",
        "results",
        recipe="tinyworld",
        seeds=(0, 1, 2),
        runs="runs",
    ),
    "tinyworld": Experiment(
        "what steps are worth in tinyworld, with the default schedule",
        "minutes on two cores",
        "docs/results/tinyworld.json",
        "tinyworld.md",
        "results",
        recipe="tinyworld",
        baselines=(STATIC,),
        runs="runs/bench",
    ),
}
