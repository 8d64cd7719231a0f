"""The server under test: a real ``tpdm serve`` in a process of its own, and what can be measured from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

START_SECONDS = 600  # limit, for a busy machine


class Server:
    """A started server; ``first_picture_seconds`` is from the start of the process to its first image."""

    def __init__(self, log: Path, slots: int, queue_limit: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "tpdm.cli", "serve", "--tpm", "tinyworld", "--port", str(self.port)]
        sizes = ["--slots", str(slots), "--queue-limit", str(queue_limit), "--max-size", "128"]
        self._log = log.open("w", encoding="utf-8")
        start = time.monotonic()
        self._process = subprocess.Popen([*command, *sizes], stderr=self._log)
        while not self._answers():
            if time.monotonic() - start > START_SECONDS or self._process.poll() is not None:
                self.kill()
                raise RuntimeError(f"The server did not start. Its log is {log}.")
            time.sleep(0.05)
        self.first_picture_seconds = time.monotonic() - start

    def _answers(self) -> bool:
        path, body = "/v1/images/generations", {"prompt": "red circle"}
        try:
            return httpx.post(f"{self.address}{path}", json=body, trust_env=False, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def memory_kib(self) -> int:
        """Resident memory."""
        text = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0])

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metrics(self) -> dict[str, float]:
        """All numbers of /metrics without labels."""
        text = httpx.get(f"{self.address}/metrics", trust_env=False).text
        return {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}

    def terminate(self) -> None:
        """Asks it to drain."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Kills it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class MemoryWatch:
    """Samples the server's memory until the end of the block."""

    def __init__(self, server: Server, every: float = 0.25) -> None:
        self._server, self._every = server, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[tuple[float, int]] = []

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while not self._end.wait(self._every):
            self.samples.append((time.monotonic() - start, self._server.memory_kib()))

    def summary(self) -> dict[str, float]:
        """Least-squares slope after the first third, in which caches and thread pools fill."""
        later = self.samples[len(self.samples) // 3 :]
        times, sizes = [t for t, _ in later], [kib for _, kib in later]
        mean_t, mean_kib = sum(times) / len(times), sum(sizes) / len(sizes)
        spread = sum((t - mean_t) ** 2 for t in times)
        slope = sum((t - mean_t) * (kib - mean_kib) for t, kib in later) / spread if spread else 0.0
        return {
            "start_mib": round(self.samples[0][1] / 1024, 1),
            "third_mib": round(sizes[0] / 1024, 1),
            "end_mib": round(sizes[-1] / 1024, 1),
            "slope_mib_per_minute": round(slope * 60 / 1024, 3),
            "slope_times_run_mib": round(slope * (times[-1] - times[0]) / 1024, 2),
            "seconds": round(self.samples[-1][0], 1),
            "samples": len(self.samples),
        }


def machine() -> dict[str, object]:
    """Hardware and versions."""
    import platform
    from importlib.metadata import version

    names = ("torch", "diffusers", "fastapi", "starlette", "uvicorn", "schemathesis")
    return {
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "niceness": os.nice(0)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }
