"""Runs of the small problem that several processes share: ``python -m tests.support.shared_runs FOLDER``.

Each case is one folder, so that the price of starting processes is paid once.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tests.support.gaussian_problem import make_small_problem
from tests.support.interrupted import InterruptingReward
from tpdm.rewards.base import Reward
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext, init_distributed
from tpdm.training.loop import train_loop

RATE = {"lr": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": RATE},
    # Five groups of three: neither two nor three processes get whole groups. Every term of the loss; tiny batches.
    "uneven": {
        "rl": {
            "updates": 6,
            "prompts_per_update": 5,
            "samples_per_prompt": 3,
            "ratio": "decision",
            "noise": "independent",
            "normalize_advantages": "group",
            "kl_weight": 0.1,
            "entropy_weight": 0.01,
            "rollout_batch": 4,
            "update_batch": 7,
        },
        "optimizer": {**RATE, "ema_decay": 0.9},
    },
    # A gamma for each prompt, and a validation at each of several.
    "dial": {
        "rl": {"updates": 3},
        "reward": {"form": "discounted", "offset": 4.0, "gamma": 0.99, "gamma_range": (0.9, 0.999), "step_cost": 0.0},
        "optimizer": RATE,
    },
    # Two images an update: one of three processes has none.
    "few": {"rl": {"updates": 4, "prompts_per_update": 1, "samples_per_prompt": 2}, "optimizer": RATE},
}
CALLS = 7  # of the reward until the interruption: after the checkpoint of update 4


def run_case(name: str, folder: Path, team: DistributedContext = SINGLE_PROCESS, judge: Reward | None = None) -> None:
    recipe, parts = make_small_problem(folder, judge, **CASES[name])
    train_loop(recipe, parts, folder, team)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with init_distributed("cpu") as team:
        for name in CASES:
            run_case(name, folder / name, team)
        with suppress(KeyboardInterrupt):
            run_case("plain", folder / "cut", team, InterruptingReward(CALLS))
        # The folder of the others is another machine's: nothing is read or written there.
        elsewhere = folder if team.is_main_process else folder / "not-here"
        run_case("plain", elsewhere / "cut", team)
        with suppress(KeyboardInterrupt):
            run_case("uneven", folder / "handed-over", team, InterruptingReward(CALLS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
