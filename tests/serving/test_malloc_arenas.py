"""The threads of a server share two malloc arenas, unless the environment variable sets another number."""

from __future__ import annotations

import platform
import re
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
# Every thread holds a block before the next one starts, so that none takes over the arena of another.
THREADS = """
import ctypes, threading
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
held, go = threading.Barrier(9), threading.Event()
def hold():
    libc.malloc(1000)
    held.wait(); go.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
[t.start() for t in threads]
held.wait()
libc.malloc_stats()
go.set()
[t.join() for t in threads]
"""
FEW = "from tpdm.serving.process import limit_malloc_arenas; print(limit_malloc_arenas())"


def arenas(first: str, **environment: str) -> tuple[int, str]:
    """Number of arenas of eight threads, and the output of the process."""
    words = [sys.executable, "-c", THREADS.format(first=first)]
    run = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, check=True)
    return len(re.findall(r"^Arena \d+:", run.stderr, re.MULTILINE)), run.stdout.strip()


@glibc
def test_threads_of_a_server_share_two_arenas():
    many, _ = arenas("")
    assert many > 2
    assert arenas(FEW) == (2, "True")


@glibc
def test_the_environment_variable_takes_precedence():
    assert arenas(FEW, MALLOC_ARENA_MAX="3") == (3, "False")
