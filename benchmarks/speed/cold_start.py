"""How long after its start a server returns its first image."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.reliability.soak.server import Server, machine

RUNS = 5


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    seconds, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(RUNS):
            server = Server(Path(folder) / "log", slots=8, queue_limit=64)
            seconds.append(round(server.first_picture_seconds, 2))
            cpu.append(round(server.cpu_seconds(), 2))
            server.kill()
    # On a machine that does other things as well, the load shows how far to trust the clock.
    load = round(os.getloadavg()[0], 1)
    return {**machine(), "load": load, "first_picture_seconds": seconds, "processor_seconds": cpu}
