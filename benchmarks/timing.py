"""Clocks and spreads: what all benchmarks of speed measure with."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import diffusers
import torch

T = TypeVar("T")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratios of values that were measured in the same turn."""
    return [a / b for a, b in zip(values, others, strict=True)]


def in_turns(ways: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What every way returned in each of ``repeats`` turns, after a first turn that warms up and is left out."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, run in ways.items():
            found[name].append(run())
    return {name: results[1:] for name, results in found.items()}


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall-clock seconds of a call, with the work of a GPU."""
    began = wall_clock()
    run()
    return wall_clock() - began


def wall_clock() -> float:
    """Seconds, read when the GPU has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Seconds by name: of the wall clock if there is a GPU, else CPU time of this process.

    One thread computes, so that CPU time is what the wall clock would show on a machine with nothing else to do.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Calls a function and adds its seconds to a name."""
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
        return wall_clock() if torch.cuda.is_available() else time.process_time()


def hardware(device: str) -> str:
    """The device that computes, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"


def versions() -> dict[str, str]:
    """The versions of the libraries that compute."""
    return {"torch": torch.__version__, "diffusers": diffusers.__version__}
