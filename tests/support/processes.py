"""Real Python processes, without the ten seconds in which each would import torch and diffusers.

A process is a fork of one server for each test process, which has imported them (``tests.support.preloaded``). It has
its own folder, environment, streams and signals. Where the start itself is tested, tests use ``subprocess``.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any

from tests.support.small_world import small_weights, small_world

ROOT = Path(__file__).parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preloaded"])


class Process:
    """As ``subprocess.Popen``: ``python WORDS``, whose words are ``-m MODULE``, ``-c CODE`` or a file, and arguments.

    Args:
        words: as above; paths may be given as such.
        cwd: the folder where it runs; the repository's, unless said.
        env: variables in addition to those of the test.
        small: with the embedded model of ``tests.support.small_world``.
    """

    def __init__(
        self,
        words: Sequence[Any],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        small: bool = False,
    ) -> None:
        folder = Path(tempfile.mkdtemp())
        self._streams = folder / "stdout", folder / "stderr"
        for file in self._streams:
            file.touch()
        variables = {**os.environ, **(env or {})}
        weights = small_weights() if small else None
        self._process = _CONTEXT.Process(
            target=_run, args=([str(word) for word in words], str(cwd or ROOT), variables, self._streams, weights)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("python", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to stdout and stderr when it has ended."""
        self.wait(timeout)
        return self.stdout, self.stderr

    @property
    def stdout(self) -> str:
        return self._streams[0].read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._streams[1].read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(words: list[str], cwd: str, variables: dict[str, str], streams: Sequence[Path], weights: Path | None) -> None:
    for number, file in zip((1, 2), streams, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    try:
        with small_world(weights) if weights else nullcontext():
            _run_words(words, cwd)
    finally:
        atexit._run_exitfuncs()


def _run_words(words: list[str], cwd: str) -> None:
    kind, *rest = words
    if kind == "-m":
        sys.path.insert(0, cwd)
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, cwd)
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(kind).parent))
        sys.argv[:] = words
        runpy.run_path(kind, run_name="__main__")


def run_python(
    words: Sequence[Any],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    small: bool = False,
    timeout: float = 300,
) -> CompletedProcess[str]:
    """As ``subprocess.run`` with captured text: see ``Process``."""
    process = Process(words, cwd, env, small)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return CompletedProcess(list(words), process.wait(), out, err)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(size: int, words: Sequence[Any], small: bool = False, **variables: str) -> list[Process]:
    """So many processes with gloo between them, as torchrun starts them, but without its agent."""
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"} | variables
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [Process(words, env=shared | rank, small=small) for rank in ranks]


def finish(processes: Sequence[Process], timeout: float = 100) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    try:
        said = [p.communicate(timeout)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.wait(), text) for p, text in zip(processes, said, strict=True)]
