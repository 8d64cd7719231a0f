"""How long after its start does a server have its first picture?

python benchmarks/cold_start.py              a minute; writes docs/results/cold-start.json
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import mean, stdev

from soak.server import Server, machine
from tpdm.core.io import write_json

RESULT = Path(__file__).parents[1] / "docs" / "results" / "cold-start.json"
RUNS = 5


def main() -> None:
    seconds, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(RUNS):
            server = Server(Path(folder) / "log", slots=8, queue_limit=64)
            seconds.append(round(server.first_picture_seconds, 2))
            cpu.append(round(server.cpu_seconds(), 2))
            server.kill()
    for name, values in (("first picture after", seconds), ("processor time until then", cpu)):
        print(f"{name} {mean(values):.1f} s, sd {stdev(values):.1f}, of {RUNS} starts on tinyworld")
    # Of a machine that does other things as well, the load says how far to trust the clock.
    load = round(os.getloadavg()[0], 1)
    write_json(RESULT, {**machine(), "load": load, "first_picture_seconds": seconds, "processor_seconds": cpu})


if __name__ == "__main__":
    main()
