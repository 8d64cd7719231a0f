"""How fast a TPM is trained, beside a plain loop with the same numbers, and over processes; what its memory grows with.

    OMP_NUM_THREADS=1 python benchmarks/training.py                        the embedded model, ten minutes
    python benchmarks/training.py --shape sd3-medium                       SD3 Medium's shape, random weights, one GPU
    python benchmarks/training.py --shape tiny --repeats 1 --processes 1   the same path in seconds, printed alone

Both loops get the same prompts, seeds, draws and TPM, in turns; ratios are taken side by side, median and range over
the repetitions. "untrained" is the TPM at the start of the demo, whose schedules are nearly alike; "young" one of 20
updates of the demo's recipe; "trained" the one that is shipped, whose images take one to twenty steps. On the embedded
model it writes docs/results/training.json and the tables of docs/training-speed.md.
"""

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

from plain_loop import Captured, PlainLoop
from tpdm.artefact import load_policy
from tpdm.config import load_recipe
from tpdm.core.objective import rloo_advantages
from tpdm.files import write_json
from tpdm.pipelines.attach import attach
from tpdm.pipelines.load import choose_device
from tpdm.pipelines.probe import probe_features
from tpdm.policy import TimePredictor
from tpdm.prompts import load_source
from tpdm.recipe import Recipe
from tpdm.rewards.load import load_reward
from tpdm.rollout import PipelineSampler, derive_seed
from tpdm.tinyworld.shipped import weights_folder
from tpdm.train.fresh import make_policy, start_times
from tpdm.train.parts import priced
from tpdm.train.run import train
from tpdm.train.scored import make_scored
from tpdm.train.team import ALONE, Team, join_team
from tpdm.train.update import make_optimizer, update_policy
from training_shapes import SHAPES, make_pipeline, memory_rows
from training_table import write_page

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "src" / "tpdm" / "recipes" / "tinyworld.yaml"
PASSES = 4  # the release's
YOUNG = 20  # updates, of the demo's 140
AGES = ("untrained", "young", "trained")
ARGUMENTS = {"guidance_scale": 1.0, "max_sequence_length": 0}


class Clock:
    """Seconds by name: of the clock where a GPU works, which is waited for, else of this process's own CPU time.

    One thread computes, so that CPU time is what the clock would show on a machine with nothing else to do.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        began = self._now()
        result = function(*args, **options)
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began
        return result

    def around(self, name: str, module: torch.nn.Module) -> list[Any]:
        """Hooks that time every call of a module; returns their handles."""
        began: list[float] = []
        before = module.register_forward_pre_hook(lambda *_: began.append(self._now()), prepend=True)

        def after(*_: Any) -> None:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began.pop()

        return [before, module.register_forward_hook(after)]

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


class Bench:
    """One shape: pipeline, reward, prompts of an update and their seeds."""

    def __init__(self, shape: str, device: str) -> None:
        self.shape, self.device = SHAPES[shape], device
        self.recipe: Recipe = load_recipe(
            RECIPE, [f"rl.epochs={PASSES}", f"rl.prompts_per_update={self.shape.prompts}", "optimizer.average=0"]
        )
        self.pipe = make_pipeline(self.shape, device)
        self.arguments = {**ARGUMENTS, **self.shape.size}
        self.reward = load_reward("tinyworld", device)
        K = self.recipe.rl.samples_per_prompt
        self.prompts = [p for p in load_source("tinyworld", limit=400)[: self.shape.prompts] for _ in range(K)]
        self.seeds = [derive_seed(0, 0, i // K) for i in range(len(self.prompts))]
        self.decision_seeds = [derive_seed(0, 1, i) for i in range(len(self.prompts))]

    def policy(self, age: str) -> TimePredictor:
        """The shipped TPM or a young one (the embedded model alone), or a new one that follows 18 uniform steps."""
        if age == "trained":
            return load_policy(weights_folder() / "tpm").to(self.device)
        if age == "young":
            return self._young
        widths = probe_features(self.pipe, self.arguments)
        start = start_times(self.recipe.tpm, self.pipe, self.arguments)
        return make_policy(self.recipe, widths, start).to(self.device)

    @cached_property
    def _young(self) -> TimePredictor:
        with tempfile.TemporaryDirectory() as folder:
            few = [f"rl.updates={YOUNG}", f"output={folder}", "validation.prompts=2", "validation.every=1000"]
            train(load_recipe(RECIPE, [*few, f"backbone.device={self.device}"]))
            return load_policy(Path(folder) / "last").to(self.device)

    def ours(self, policy: TimePredictor, clock: Clock, team: Team = ALONE) -> tuple[list[int], int]:
        """One update; steps of all images and bytes of the replay."""
        sampling = self.recipe.sampling
        adaptive = attach(self.pipe, policy, max_steps=sampling.max_steps, stop_below=sampling.stop_below)
        sampler = PipelineSampler(adaptive, self.shape.batch, self.arguments)

        def make(prompts: Any, seeds: Any, decision_seeds: Any, record: bool, gammas: Any) -> Any:
            return clock.timed("rollout", sampler, [p.text for p in prompts], seeds, decision_seeds, record)

        reward = TimedReward(self.reward, clock)
        rollout = make_scored(team, make, reward, self.prompts, self.seeds, self.decision_seeds)
        advantage_B = self.advantages(rollout.scored.score_B, rollout.steps)
        replay = rollout.replay()
        optimizer = make_optimizer(policy, self.recipe.optimizer)
        clock.timed(
            "update",
            update_policy,
            policy,
            optimizer,
            replay,
            advantage_B[rollout.mine],
            self.recipe.rl,
            self.recipe.optimizer.grad_clip,
            None,
            team,
        )
        seen = [] if replay is None else [replay.observation.map_BCHW, replay.observation.temb_BE]
        return rollout.steps, sum(x.numel() * x.element_size() for x in seen if x is not None)

    def plain(self, policy: TimePredictor, clock: Clock, captured: Captured) -> tuple[list[int], int]:
        """The same update, plainly."""
        sampling, rl = self.recipe.sampling, self.recipe.rl
        loop = PlainLoop(
            self.pipe, policy, captured, self.arguments, self.shape.batch, sampling.max_steps, sampling.stop_below
        )
        texts = [p.text for p in self.prompts]
        images, steps, records = clock.timed("rollout", loop.roll_out, texts, self.seeds, self.decision_seeds)
        score_B = clock.timed("reward", self.reward.score, images, texts)
        optimizer = make_optimizer(policy, self.recipe.optimizer)
        advantage_B = self.advantages(score_B, steps)
        clip = self.recipe.optimizer.grad_clip
        clock.timed("update", loop.update, optimizer, records, advantage_B, rl.epochs, rl.clip, clip)
        return steps, sum(record.bytes for record in records)

    def advantages(self, score_B: torch.Tensor, steps: list[int]) -> torch.Tensor:
        objective_B = priced(score_B.float().cpu(), torch.tensor(steps), self.recipe.reward)
        K = self.recipe.rl.samples_per_prompt
        return rloo_advantages(objective_B.view(-1, K), self.recipe.rl.normalise_advantages).flatten()


class TimedReward:
    """A reward whose scoring is timed."""

    def __init__(self, reward: Any, clock: Clock) -> None:
        self.name, self._reward, self._clock = reward.name, reward, clock

    def score(self, images_B3HW: torch.Tensor, prompts: Any) -> torch.Tensor:
        scores: torch.Tensor = self._clock.timed("reward", self._reward.score, images_B3HW, prompts)
        return scores


def compare(bench: Bench, age: str, repeats: int) -> dict[str, Any]:
    """Both loops in turns, from the same weights each time."""
    start = bench.policy(age)
    captured = Captured(bench.pipe.transformer)
    rows = []
    for _ in range(repeats + 1):  # the first one warms up
        ours, plain = copy.deepcopy(start), copy.deepcopy(start)
        fast, slow = Clock(), Clock()
        steps, replay = bench.ours(ours, fast)
        plain_steps, features = bench.plain(plain, slow, captured)
        fast_all, slow_all = sum(fast.seconds.values()), sum(slow.seconds.values())
        apart = [
            float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
        ]
        rows.append(
            {
                "trajectories_per_second": len(steps) / fast_all,
                "plain_trajectories_per_second": len(steps) / slow_all,
                "ratio": slow_all / fast_all,
                "rollout_ratio": slow.seconds["rollout"] / fast.seconds["rollout"],
                "update_ratio": slow.seconds["update"] / fast.seconds["update"],
                "equal_steps": steps == plain_steps,
                "weights_apart": max(apart),
            }
        )
    captured.remove()
    summary = {key: spread([row[key] for row in rows[1:]]) for key in rows[0] if key != "equal_steps"}
    return {
        "policy": age,
        "trajectories": len(steps),
        "steps_mean": sum(steps) / len(steps),
        "steps_max": max(steps),
        "equal_steps": all(row["equal_steps"] for row in rows),
        "replay_bytes": replay,
        "plain_bytes": features,
        **summary,
    }


def shares(bench: Bench, age: str, repeats: int) -> dict[str, float]:
    """Where the time of our update goes: shares of the whole."""
    start, total, found = bench.policy(age), 0.0, Clock()
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


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def worker(shape: str, device: str, updates: int) -> None:
    """One of several processes: prints what the first one measured, as JSON."""
    with join_team(device) as team:
        bench = Bench(shape, device)
        start = bench.policy("trained" if shape == "tinyworld" else "untrained")
        bench.ours(copy.deepcopy(start), Clock(), team)  # warms up
        team.wait()
        clock = Clock()
        for _ in range(updates):
            bench.ours(copy.deepcopy(start), clock, team)
        team.wait()
        # Between two meetings of the processes the slowest one sets the pace.
        makes = team.gather_json(clock.seconds["rollout"] + clock.seconds["reward"])
        learns = team.gather_json(clock.seconds["update"])
        if team.leads:
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
            words = [str(Path(__file__)), "--worker", "--shape", shape, "--device", device, "--updates", str(updates)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
            said = subprocess.run(
                [sys.executable, *launcher, *words], env=environment, capture_output=True, text=True, check=True
            )
            found.append(json.loads(said.stdout.strip().splitlines()[-1]))
    key = "trajectories_per_second"
    pairs = zip(rows[1], rows[2], strict=True)
    return {"efficiency": spread([two[key] / one[key] / 2 for one, two in pairs]), "one": rows[1], "two": rows[2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tinyworld")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2, help="timed by each process of the scaling runs")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="2 measures scaling, too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    logging.set_verbosity_error()  # it asks for another way to cast weights that are random anyway
    device = choose_device() if chosen.device == "auto" else chosen.device
    if chosen.worker:
        worker(chosen.shape, device, chosen.updates)
        return
    bench = Bench(chosen.shape, device)
    ages = AGES if chosen.shape == "tinyworld" else AGES[:1]
    facts: dict[str, Any] = {
        "shape": chosen.shape,
        "passes": PASSES,
        "repeats": chosen.repeats,
        "beside_a_plain_loop": [compare(bench, age, chosen.repeats) for age in ages],
        "shares": {age: shares(bench, age, chosen.repeats) for age in ages},
        "memory": memory_rows(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
        if device == "cpu"
        else torch.cuda.get_device_name(),
    }
    if chosen.shape == "tinyworld" and chosen.processes == 2:
        facts["scaling"] = scaling(chosen.shape, device, chosen.repeats, chosen.updates)
        write_json(ROOT / "docs" / "results" / "training.json", facts)
        write_page(ROOT / "docs" / "training-speed.md", facts)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
