"""The heartbeat of a run with several processes: a lost process ends the others with an error message."""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch.distributed as dist

from tpdm.core.errors import TrainingError
from tpdm.training.distributed.context import DistributedContext, PeerLostError


class _TerminatedError(TrainingError):
    """Raised in the main thread by SIGTERM, from the launcher or from the heartbeat of this process."""


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # raise only once
    raise _TerminatedError("SIGTERM received")


def _interrupt_main_thread() -> None:
    _thread.interrupt_main(signal.SIGTERM)


def _kill(reason: str) -> None:
    print(f"Error: {reason}", file=sys.stderr, flush=True)
    os._exit(2)


@contextmanager
def heartbeat(context: DistributedContext) -> Iterator[None]:
    """Watches the processes of a run inside the block. Does nothing for a single process.

    Args:
        context: The processes of the run.

    Raises:
        TrainingError: Another process stopped (with its message) or is lost, or this process got SIGTERM.
    """
    if context.size == 1:
        yield
        return
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    server = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if context.is_main_process else None
    port = context.broadcast_object(None if server is None else server.port)
    store = server or dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENT))
    beats = Heartbeat(context.rank, context.size, store, _interrupt_main_thread, _kill)
    context.wait()
    beats.start()
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
        beats.stop()  # before wait(), so that the first process to end does not count as lost
        context.wait()
    except (PeerLostError, _TerminatedError) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher must not interrupt the message
        raise TrainingError(beats.explain()) from error
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        beats.leave(" ".join(str(error).split()) or type(error).__name__)
        raise
    finally:
        beats.stop()
        signal.signal(signal.SIGTERM, before)


BEAT = 1.0  # seconds between two beats

SILENT = 40.0  # seconds without a beat until a process counts as lost. Python may be busy for a while.

GRACE = 10.0  # seconds until a main thread that does not end is killed

RESUMES = "The same command resumes from the last checkpoint."


@dataclass(frozen=True)
class _LastBeat:
    """The last beat of a process: its number, its time, and the message of a process that stopped."""

    count: int
    when: float
    reason: str | None


class Heartbeat:
    """Sends the beats of this process and watches those of the others, in two threads.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        store: Key-value store that all processes reach.
        interrupt: Called once, from a thread, when another process stopped or is lost.
        kill: Called with the reason if ``stop`` is not called within ``GRACE`` seconds after that.
        silent: Seconds without a beat until a process counts as lost. Default: ``SILENT``.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: dist.Store,
        interrupt: Callable[[], None],
        kill: Callable[[str], None],
        silent: float = SILENT,
    ) -> None:
        self._rank, self._size, self._store, self._silent = rank, size, store, silent
        self._interrupt, self._kill = interrupt, kill
        self._reason: str | None = None
        self._last = {r: _LastBeat(0, time.monotonic(), None) for r in range(size) if r != rank}
        self._store_gone = False
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._beat, self._watch)]
        store.set(self._key(rank), json.dumps([0, None]))

    def start(self) -> None:
        """Starts the threads. Call it after all processes have created their heartbeat."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops the threads. From now on no process counts as lost."""
        self._stopped.set()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout=5 * BEAT)

    def leave(self, reason: str) -> None:
        """Sends the others the reason why this process stops, and waits until they have it."""
        self._reason = reason
        time.sleep(2.5 * BEAT)

    def explain(self) -> str:
        """Why the others do not answer, from their beats of the next seconds."""
        time.sleep(1.5 * BEAT)  # the last beat of a lost process may arrive late
        before, until = dict(self._last), time.monotonic() + 3 * BEAT
        while time.monotonic() < until:
            if reason := self._stopped_process():
                return reason
            time.sleep(BEAT / 4)
        if self._store_gone:
            return self._lost(0)
        silent = [rank for rank, beat in self._last.items() if beat.count == before[rank].count]
        if silent:
            return self._lost(silent[0])
        return f"Process {self._rank} of {self._size} got SIGTERM. It must run to the end. {RESUMES}"

    def _key(self, rank: int) -> str:
        return f"tpdm/pulse/{rank}"

    def _beat(self) -> None:
        others, count = list(self._last), 0
        while not self._stopped.wait(BEAT / 2):
            count += 1
            try:
                self._store.set(self._key(self._rank), json.dumps([count, self._reason]))
                beats = self._store.multi_get([self._key(rank) for rank in others])
            except RuntimeError:  # the store is in the main process
                self._store_gone = True
                return
            for rank, (number, reason) in zip(others, map(json.loads, beats), strict=True):
                if (number, reason) != (self._last[rank].count, self._last[rank].reason):
                    self._last[rank] = _LastBeat(number, time.monotonic(), reason)

    def _watch(self) -> None:
        # In a thread of its own, because _beat may wait in the network for a lost machine.
        while not self._stopped.wait(BEAT / 2):
            reason = self._stopped_process() or self._lost_process()
            if reason:
                self._interrupt()
                if not self._stopped.wait(GRACE):  # the main thread waits for a lost process
                    self._kill(reason)
                return

    def _stopped_process(self) -> str | None:
        for rank, beat in self._last.items():
            if beat.reason is not None:
                return f"Process {rank} of {self._size} stopped: {beat.reason}"
        return None

    def _lost_process(self) -> str | None:
        if self._store_gone:
            return self._lost(0)
        now = time.monotonic()
        silent = [rank for rank, beat in self._last.items() if now - beat.when > self._silent]
        return self._lost(silent[0]) if silent else None

    def _lost(self, rank: int) -> str:
        return (
            f"Process {rank} of {self._size} is lost (killed, out of memory, or its machine is down). All processes "
            f"must run to the end. {RESUMES}"
        )
