"""A process that fails, dies or falls silent ends the run on all others, with a sentence; and the run goes on."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.support.interrupted import files
from tests.support.processes import Process, finish, free_port, start
from tpdm.core.io import read_metrics
from tpdm.training.distributed import heartbeat as pulse
from tpdm.training.distributed.heartbeat import Heartbeat


@pytest.fixture
def three(monkeypatch):
    """The pulses of three processes, here in one, ten times as fast."""
    monkeypatch.setattr(pulse, "BEAT", 0.1)
    monkeypatch.setattr(pulse, "GRACE", 0.3)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    calls: list[dict] = [{"interrupted": 0, "killed": None} for _ in range(3)]
    pulses = []
    for rank in range(3):

        def interrupt(rank=rank):
            calls[rank]["interrupted"] += 1

        def kill(reason, rank=rank):
            calls[rank]["killed"] = reason

        pulses.append(Heartbeat(rank, 3, store, interrupt, kill, silent=0.8))
    for one in pulses:
        one.start()
    yield pulses, calls
    for one in pulses:
        one.stop()


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_nobody_is_interrupted_while_all_are_there(three):
    _, calls = three
    time.sleep(1.5)
    assert all(call == {"interrupted": 0, "killed": None} for call in calls)


def test_a_process_that_falls_silent_is_named(three):
    pulses, calls = three
    pulses[1].stop()
    wait_for(lambda: calls[0]["interrupted"] and calls[2]["interrupted"])
    assert "process 1 of 3 is gone" in pulses[0].explain()
    assert "process 1 of 3 is gone" in calls[2]["killed"]  # whose main thread did not end
    assert calls[1] == {"interrupted": 0, "killed": None}


def test_a_process_that_stops_says_why_to_the_others(three):
    pulses, calls = three
    pulses[2].leave("got nan from reward 'x'")
    wait_for(lambda: calls[0]["interrupted"] and calls[1]["interrupted"])
    assert pulses[0].explain() == "process 2 of 3 stopped: got nan from reward 'x'"


def test_a_process_that_was_told_to_end_says_so(three):
    assert three[0][1].explain().startswith("process 1 of 3 was told to end")


def wait_for_updates(folder: Path, updates: int) -> None:
    wait_for(lambda: len(read_metrics(folder / "metrics.jsonl")) > updates, seconds=90)


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path):
    processes = start(3, ["-m", "tests.support.long_run", str(tmp_path), "100000"])
    wait_for_updates(tmp_path, 3)
    began = time.monotonic()
    processes[1].kill()
    ended = finish(processes)
    assert time.monotonic() - began < 60
    assert ended[1][0] == -signal.SIGKILL
    for rank in (0, 2):
        assert ended[rank][0] == 2, ended[rank][1]
        last = ended[rank][1].splitlines()[-1]
        assert last.startswith("Error: process 1 of 3 is gone"), ended[rank][1]
        assert "goes on from the last checkpoint" in last


def agent(folder: Path, updates: int, port: int) -> Process:
    """One of two "nodes": a torchrun of its own, which meets the other at an address."""
    words = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--local-addr", "127.0.0.1"]
    words += ["-m", "tests.support.long_run", str(folder), str(updates)]
    return Process(words)


@pytest.mark.slow
def test_two_nodes_lose_a_process_and_go_on(tmp_path):
    port = free_port()
    agents = [agent(tmp_path, 30, port) for _ in range(2)]
    wait_for_updates(tmp_path, 3)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    began = time.monotonic()
    ended = finish(agents)
    assert time.monotonic() - began < 60
    assert all(code != 0 for code, _ in ended)
    assert any("Error: process 1 of 2 is gone" in said for _, said in ended), ended
    done = len(read_metrics(tmp_path / "metrics.jsonl"))
    port = free_port()
    for code, said in finish([agent(tmp_path, 30, port) for _ in range(2)]):
        assert code == 0, said
    assert len(read_metrics(tmp_path / "metrics.jsonl")) > done
    assert "checkpoints/update-000030/policy.safetensors" in files(tmp_path)
