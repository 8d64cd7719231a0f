"""SIGKILL at random moments of a training run, and the run resumed each time: is the end the same, bit by bit?

    nice -n 15 python benchmarks/kill_resume.py               50 kills, minutes
    python benchmarks/kill_resume.py --kills 4 --printed      a few, printed and not written

A tiny run on tinyworld is made once in one piece, and then again and again by processes that are killed. The moments
are dealt to the four parts of an update (while images are made, while they are scored, while the policy is updated,
while a checkpoint is written): after a random number of entries into that part, at a random point of its usual time.
What the process was doing when it died is read from a page of memory that outlives it. Writes
docs/results/kill-resume.json.
"""

import argparse
import json
import mmap
import os
import platform
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import torch

import tpdm.training.loop
from tpdm.config.loader import load_recipe
from tpdm.core.io import read_metrics, write_json
from tpdm.training.build import build_components
from tpdm.training.loop import train_loop

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "src" / "tpdm" / "config" / "recipes" / "tinyworld.yaml"
PARTS = ("other", "rollout", "reward", "update", "checkpoint")
CLOCKS = ("seconds", "learn_seconds")
SMALL = ["rl.prompts_per_update=4", "rl.samples_per_prompt=3", "prompts.limit=400"]
SMALL += ["validation.prompts=4", "validation.every=5", "checkpoint.every=1", "backbone.device=cpu"]


class Page:
    """What a process is doing and how often it has begun each part, in a file that stays when it is killed."""

    LAYOUT = struct.Struct("=6Q")  # the part now, then entries into each

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(self.LAYOUT.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.LAYOUT.size)

    def read(self) -> tuple[str, dict[str, int]]:
        now, *entries = self.LAYOUT.unpack(self._memory[:])
        return PARTS[now], dict(zip(PARTS, entries, strict=True))

    def clear(self) -> None:
        self._memory[:] = bytes(self.LAYOUT.size)

    def around(self, part: str, function: Any, seconds: list[float] | None = None) -> Any:
        """The same function, noted while it runs."""

        def noted(*args: Any, **options: Any) -> Any:
            _, *entries = self.LAYOUT.unpack(self._memory[:])
            entries[PARTS.index(part)] += 1
            self._memory[:] = self.LAYOUT.pack(PARTS.index(part), *entries)
            began = time.monotonic()
            result = function(*args, **options)
            if seconds is not None:
                seconds.append(time.monotonic() - began)
            self._memory[:] = self.LAYOUT.pack(0, *entries)
            return result

        return noted


class NotedReward:
    """A reward under its own name, noted while it scores."""

    def __init__(self, reward: Any, page: Page, seconds: list[float] | None) -> None:
        self.name, self.score = reward.name, page.around("reward", reward.score, seconds)


def run(folder: Path, page: Page, updates: int, seconds: dict[str, list[float]] | None = None) -> None:
    """Trains, or goes on, with every part noted."""

    def times(part: str) -> list[float] | None:
        return None if seconds is None else seconds.setdefault(part, [])

    loop: Any = tpdm.training.loop
    update, save = loop.update_policy, loop.save_checkpoint
    loop.update_policy = page.around("update", update, times("update"))
    loop.save_checkpoint = page.around("checkpoint", save, times("checkpoint"))
    try:
        recipe = load_recipe(RECIPE, [*SMALL, f"rl.updates={updates}", f"output={folder}"])
        parts = build_components(recipe, folder)
        noted = page.around("rollout", parts.sampler, times("rollout"))
        reward = NotedReward(parts.reward, page, times("reward"))
        train_loop(recipe, replace(parts, sampler=noted, reward=reward), folder)
    finally:
        loop.update_policy, loop.save_checkpoint = update, save


def content(folder: Path) -> dict[str, str]:
    """Every file of a run by its digest; clocks, and digests of files that hold one, are left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.startswith("."):  # left by a kill, never read
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(path)]
            data = json.dumps(rows).encode()
        elif path.name in ("state.json", "sha256.json"):
            left_out = (*CLOCKS, "state.json")
            data = json.dumps({k: v for k, v in json.loads(data).items() if k not in left_out}).encode()
        elif path.name == "recipe.yaml":
            data = data.replace(str(folder).encode(), b"FOLDER")
        found[str(path.relative_to(folder))] = sha256(data).hexdigest()
    return found


def start(folder: Path, page: Page, updates: int) -> int:
    """A process that trains; forked, so that the libraries are loaded once. Its memory is its own."""
    page.clear()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 2)
            run(folder, page, updates)
            code = 0
        finally:
            os._exit(code)
    return pid


def kill_in(pid: int, page: Page, part: str, entries: int, wait: float) -> str | None:
    """Kills a process so long after it began a part; what it was doing, or None where it had ended before."""
    while page.read()[1][part] < entries:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        time.sleep(0.0005)
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return page.read()[0] if os.WIFSIGNALED(status) else None


def measure(kills: int, updates: int, seed: int, work: Path) -> dict[str, Any]:
    moments, page = random.Random(seed), Page(work / "page")
    seconds: dict[str, list[float]] = {}
    run(work / "whole", page, updates, seconds)
    usual = {part: sorted(values)[len(values) // 2] for part, values in seconds.items()}
    expected = content(work / "whole")
    died: Counter[str] = Counter()
    equal, differing, runs = True, set[str](), 0
    while died.total() < kills:
        folder = work / f"killed-{runs}"
        while died.total() < kills:
            part = min(PARTS[1:], key=lambda one: died[one])  # some are so short that kills come after them
            where = kill_in(
                start(folder, page, updates), page, part, moments.randint(1, 4), moments.random() * usual[part]
            )
            if where is None:
                break
            died[where] += 1
            print(f"kill {died.total()} of {kills}: in {where}", file=sys.stderr, flush=True)
        pid = start(folder, page, updates)
        assert os.waitpid(pid, 0)[1] == 0, "the run did not end"
        got = content(folder)
        differing |= {name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)}
        equal, runs = equal and not differing, runs + 1
        shutil.rmtree(folder)
    return {
        "kills": died.total(),
        "while": dict(sorted(died.items())),
        "runs": runs,
        "updates": updates,
        "files_compared": len(expected),
        "equal": equal,
        "differing": sorted(differing),
        "seed": seed,
        "usual_seconds": {part: round(value, 4) for part, value in usual.items()},
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--updates", type=int, default=30, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--printed", action="store_true", help="print, write nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        facts = measure(chosen.kills, chosen.updates, chosen.seed, Path(work))
    print(json.dumps(facts, indent=2))
    if not chosen.printed:
        write_json(ROOT / "docs" / "results" / "kill-resume.json", facts)
    if not facts["equal"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
