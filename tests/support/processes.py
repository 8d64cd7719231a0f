"""Real processes with gloo between them, as torchrun starts them, but without its agent: seconds instead of ten."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(size: int, words: Sequence[str], **variables: str) -> list[subprocess.Popen[str]]:
    """``python WORDS`` in so many processes that know of each other."""
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"} | variables
    return [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], timeout: float = 100) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    try:
        said = [p.communicate(timeout=timeout)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]
