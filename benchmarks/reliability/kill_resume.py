"""SIGKILL at random moments of a training run, which is resumed each time: is the end the same, bit by bit?

A tiny run on tinyworld is made once in one piece, and then by processes that are killed. The moments are spread over
the four parts of an update: while images are made, while they are scored, while the policy is updated, while a
checkpoint is written. Each is after a random number of entries into that part, at a random point of its usual time.
What the process was doing when it died is read from a page of memory that outlives it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import tpdm.training.loop
from benchmarks.command import RECIPES
from benchmarks.timing import hardware, versions
from tpdm.config.loader import load_recipe
from tpdm.core.io import load_tensors, read_metrics
from tpdm.training.build import build_components
from tpdm.training.loop import train_loop

RECIPE = RECIPES / "tinyworld.yaml"
PARTS = ("other", "rollout", "reward", "update", "checkpoint")
CLOCKS = ("seconds", "reward_seconds", "learn_seconds")  # all other values of a run are compared
SMALL = ["rl.prompts_per_update=4", "rl.samples_per_prompt=3", "prompts.limit=400"]
SMALL += ["validation.prompts=4", "validation.every=5", "checkpoint.every=1", "backbone.device=cpu"]


class Page:
    """What a process does, and how often it has begun each part, in a file that outlives the process."""

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
        """The same function, recorded while it runs."""

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
    """A reward with the same name, recorded while it scores."""

    def __init__(self, reward: Any, page: Page, seconds: list[float] | None) -> None:
        self.name, self.score = reward.name, page.around("reward", reward.score, seconds)


def run(folder: Path, page: Page, changes: Sequence[str], seconds: dict[str, list[float]] | None = None) -> None:
    """Trains or resumes, with every part recorded."""

    def times(part: str) -> list[float] | None:
        return None if seconds is None else seconds.setdefault(part, [])

    loop: Any = tpdm.training.loop
    update, save = loop.update_policy, loop.save_checkpoint
    loop.update_policy = page.around("update", update, times("update"))
    loop.save_checkpoint = page.around("checkpoint", save, times("checkpoint"))
    try:
        recipe = load_recipe(RECIPE, [*changes, f"output={folder}"])
        parts = build_components(recipe, folder)
        noted = page.around("rollout", parts.sampler, times("rollout"))
        reward = NotedReward(parts.reward, page, times("reward"))
        train_loop(recipe, replace(parts, sampler=noted, reward=reward), folder)
    finally:
        loop.update_policy, loop.save_checkpoint = update, save


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Every value of every file of a run, by file and key, without the values of ``CLOCKS``.

    The keys of a JSON file are its own; those of metrics.jsonl follow the number of their line, those of a safetensors
    file are the names of its tensors. Any other file has one key, its digest.
    """
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.startswith("."):  # a kill has left it; it is never read
            continue
        values: dict[str, Any]
        if path.name == "metrics.jsonl":
            lines = enumerate(read_metrics(path), start=1)
            values = {f"line {n}: {key}": value for n, row in lines for key, value in row.items() if key not in CLOCKS}
        elif path.suffix == ".json":
            # state.json contains a clock, and sha256.json its digest.
            clocks = (*CLOCKS, "state.json")
            values = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in clocks}
        elif path.suffix == ".safetensors":
            tensors, metadata = load_tensors(path)
            digests = {name: sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
            values = {**digests, "metadata": metadata}
        else:
            values = {"digest": sha256(path.read_bytes().replace(str(folder).encode(), b"FOLDER")).hexdigest()}
        found[str(path.relative_to(folder))] = values
    return found


def differences(expected: Path, run: Path) -> list[str]:
    """What differs between two runs: ``FILE: KEY`` of every value that is not equal, or that one of them lacks."""
    one, other = contents(expected), contents(run)
    return [
        f"{file}: {key}"
        for file in sorted(one.keys() | other.keys())
        for key in sorted(one.get(file, {}).keys() | other.get(file, {}).keys())
        if key not in one.get(file, {}) or key not in other.get(file, {}) or one[file][key] != other[file][key]
    ]


def start(folder: Path, page: Page, changes: Sequence[str]) -> int:
    """A process that trains; forked, so that the libraries are loaded once."""
    page.clear()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 2)
            run(folder, page, changes)
            code = 0
        finally:
            os._exit(code)
    return pid


def kill_in(pid: int, page: Page, part: str, entries: int, wait: float) -> str | None:
    """Kills a process some seconds after it began a part; returns what it did, or None if it had ended before."""
    while page.read()[1][part] < entries:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        time.sleep(0.0005)
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return page.read()[0] if os.WIFSIGNALED(status) else None


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--updates", type=int, default=30, help="updates of the run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the recipe")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        changes = [*SMALL, f"rl.updates={chosen.updates}", *chosen.set]
        return {"updates": chosen.updates, **kill_and_resume(chosen.kills, changes, chosen.seed, Path(work))}


def broken(facts: dict[str, Any]) -> list[str]:
    differing = facts["differing"]
    return [f"{len(differing)} values of killed runs differ, first {differing[0]}"] if differing else []


def kill_and_resume(kills: int, changes: Sequence[str], seed: int, work: Path) -> dict[str, Any]:
    moments, page = random.Random(seed), Page(work / "page")
    seconds: dict[str, list[float]] = {}
    run(work / "whole", page, changes, seconds)
    usual = {part: sorted(values)[len(values) // 2] for part, values in seconds.items()}
    died: Counter[str] = Counter()
    differing, runs = set[str](), 0
    while died.total() < kills:
        folder = work / f"killed-{runs}"
        while died.total() < kills:
            part = min(PARTS[1:], key=lambda one: died[one])  # some parts are so short that a kill comes after them
            where = kill_in(
                start(folder, page, changes), page, part, moments.randint(1, 4), moments.random() * usual[part]
            )
            if where is None:
                break
            died[where] += 1
            print(f"kill {died.total()} of {kills}: in {where}", file=sys.stderr, flush=True)
        pid = start(folder, page, changes)
        assert os.waitpid(pid, 0)[1] == 0, "The run did not end."
        differing |= set(differences(work / "whole", folder))
        runs += 1
        shutil.rmtree(folder)
    return {
        "kills": died.total(),
        "while": dict(sorted(died.items())),
        "runs": runs,
        "files_compared": len(contents(work / "whole")),
        "equal": not differing,
        "differing": sorted(differing),
        "seed": seed,
        "usual_seconds": {part: round(value, 4) for part, value in usual.items()},
        "versions": versions(),
        "hardware": hardware("cpu"),
    }
