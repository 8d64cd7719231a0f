"""A process that fails or dies ends the run in all processes with an error, and the run resumes."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.support.interrupted import files
from tests.support.processes import Process, finish, free_port, start
from tpdm.core.io import read_metrics
from tpdm.training.distributed import heartbeat
from tpdm.training.distributed.heartbeat import Heartbeat


@pytest.fixture
def three(monkeypatch):
    """Heartbeats of three processes, in one process and ten times as fast."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.1)
    monkeypatch.setattr(heartbeat, "GRACE", 0.3)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    calls: list[dict] = [{"interrupted": 0, "killed": None} for _ in range(3)]
    beats = []
    for rank in range(3):

        def interrupt(rank=rank):
            calls[rank]["interrupted"] += 1

        def kill(reason, rank=rank):
            calls[rank]["killed"] = reason

        beats.append(Heartbeat(rank, 3, store, interrupt, kill, silent=0.8))
    for beat in beats:
        beat.start()
    yield beats, calls
    for beat in beats:
        beat.stop()


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_no_process_is_interrupted_while_all_beat(three):
    _, calls = three
    time.sleep(1.5)
    assert all(call == {"interrupted": 0, "killed": None} for call in calls)


def test_a_process_without_beats_is_named(three):
    beats, calls = three
    beats[1].stop()
    wait_for(lambda: calls[0]["interrupted"] and calls[2]["interrupted"])
    assert "Process 1 of 3 is lost" in beats[0].explain()
    assert "Process 1 of 3 is lost" in calls[2]["killed"]  # whose main thread did not end
    assert calls[1] == {"interrupted": 0, "killed": None}


def test_a_process_that_stops_sends_its_reason(three):
    beats, calls = three
    beats[2].leave("got nan from reward 'x'")
    wait_for(lambda: calls[0]["interrupted"] and calls[1]["interrupted"])
    assert beats[0].explain() == "Process 2 of 3 stopped: got nan from reward 'x'"


def test_a_terminated_process_reports_sigterm(three):
    assert three[0][1].explain().startswith("Process 1 of 3 got SIGTERM")


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
        assert last.startswith("Error: Process 1 of 3 is lost"), ended[rank][1]
        assert "resumes from the last checkpoint" in last


def agent(folder: Path, updates: int, port: int) -> Process:
    """One of two "nodes": a torchrun of its own, which meets the other at an address."""
    words = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--local-addr", "127.0.0.1"]
    words += ["-m", "tests.support.long_run", str(folder), str(updates)]
    return Process(words)


@pytest.mark.slow
def test_two_nodes_resume_after_a_lost_process(tmp_path):
    port = free_port()
    agents = [agent(tmp_path, 30, port) for _ in range(2)]
    wait_for_updates(tmp_path, 3)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    began = time.monotonic()
    ended = finish(agents)
    assert time.monotonic() - began < 60
    assert all(code != 0 for code, _ in ended)
    assert any("Error: Process 1 of 2 is lost" in output for _, output in ended), ended
    done = len(read_metrics(tmp_path / "metrics.jsonl"))
    port = free_port()
    for code, output in finish([agent(tmp_path, 30, port) for _ in range(2)]):
        assert code == 0, output
    assert len(read_metrics(tmp_path / "metrics.jsonl")) > done
    assert "checkpoints/update-000030/policy.safetensors" in files(tmp_path)
