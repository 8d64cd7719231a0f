"""The pulse of a run, from its first update to its last: one sentence where another process is lost."""

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


class _ToldToEnd(TrainingError):
    """Raised in the main thread by a signal: the launcher's, or this process's own pulse."""


def _raise_told(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise _ToldToEnd("told to end")


def _interrupt_main_thread() -> None:
    _thread.interrupt_main(signal.SIGTERM)


def _kill(reason: str) -> None:
    print(f"Error: {reason}", file=sys.stderr, flush=True)
    os._exit(2)


@contextmanager
def heartbeat(context: DistributedContext) -> Iterator[None]:
    """Inside the block the processes of a context watch over each other; a process alone has nobody to watch.

    Raises:
        TrainingError: another process stopped (with its sentence), or is gone, or this one was told to end.
    """
    if context.size == 1:
        yield
        return
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if context.is_main_process else None
    port = context.broadcast_object(None if own is None else own.port)
    store = own or dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENT))
    pulse = Heartbeat(context.rank, context.size, store, _interrupt_main_thread, _kill)
    context.wait()
    pulse.start()
    before = signal.signal(signal.SIGTERM, _raise_told)
    try:
        yield
        pulse.stop()  # before the others are waited for: the first one to end is not missed
        context.wait()
    except (PeerLostError, _ToldToEnd) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher that also noticed may not cut the sentence short
        raise TrainingError(pulse.explain()) from error
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pulse.leave(" ".join(str(error).split()) or type(error).__name__)
        raise
    finally:
        pulse.stop()
        signal.signal(signal.SIGTERM, before)


BEAT = 1.0  # seconds between two signs of life

SILENT = 40.0  # seconds without one until a process counts as lost; Python may be busy for a while

GRACE = 10.0  # seconds that the main thread has to end by itself

GOES_ON = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class _Heard:
    """The last sign of a process: its number, when it came, and the sentence of one that stopped."""

    count: int
    when: float
    left: str | None


class Heartbeat:
    """Says that this process is there, and listens for the others.

    Args:
        rank, size: of this process, and how many there are.
        store: which all of them reach.
        interrupt: is called once, from a thread, when the run cannot go on.
        kill: is called with the reason where the block has not been left ``GRACE`` seconds later.
        silent: seconds after which a process that says nothing counts as lost.
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
        self._left: str | None = None
        self._heard = {r: _Heard(0, time.monotonic(), None) for r in range(size) if r != rank}
        self._store_gone = False
        self._over = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._beat, self._listen)]
        store.set(self._key(rank), json.dumps([0, None]))

    def start(self) -> None:
        """Begins; every process of the run has been made by then."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the signs; nobody is missed from now on."""
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout=5 * BEAT)

    def leave(self, reason: str) -> None:
        """Tells the others why this process stops, and gives them the time to hear it."""
        self._left = reason
        time.sleep(2.5 * BEAT)

    def explain(self) -> str:
        """Why the others do not answer, as far as their signs of the next few seconds tell."""
        time.sleep(1.5 * BEAT)  # the last sign of one that is gone may still have been on its way
        before, until = dict(self._heard), time.monotonic() + 3 * BEAT
        while time.monotonic() < until:
            left = self._who_left()
            if left:
                return left
            time.sleep(BEAT / 4)
        if self._store_gone:
            return self._lost(0)
        silent = [rank for rank, heard in self._heard.items() if heard.count == before[rank].count]
        if silent:
            return self._lost(silent[0])
        return f"process {self._rank} of {self._size} was told to end, expected to train on; {GOES_ON}"

    def _key(self, rank: int) -> str:
        return f"tpdm/pulse/{rank}"

    def _beat(self) -> None:
        others, count = list(self._heard), 0
        while not self._over.wait(BEAT / 2):
            count += 1
            try:
                self._store.set(self._key(self._rank), json.dumps([count, self._left]))
                said = self._store.multi_get([self._key(rank) for rank in others])
            except RuntimeError:  # the leading process holds the store
                self._store_gone = True
                return
            for rank, (number, left) in zip(others, map(json.loads, said), strict=True):
                if (number, left) != (self._heard[rank].count, self._heard[rank].left):
                    self._heard[rank] = _Heard(number, time.monotonic(), left)

    def _listen(self) -> None:
        # A thread of its own: where a machine is gone, the other one may wait in the network for long.
        while not self._over.wait(BEAT / 2):
            reason = self._who_left() or self._who_is_lost()
            if reason:
                self._interrupt()
                if not self._over.wait(GRACE):  # it waits for a process that never answers
                    self._kill(reason)
                return

    def _who_left(self) -> str | None:
        for rank, heard in self._heard.items():
            if heard.left is not None:
                return f"process {rank} of {self._size} stopped: {heard.left}"
        return None

    def _who_is_lost(self) -> str | None:
        if self._store_gone:
            return self._lost(0)
        now = time.monotonic()
        silent = [rank for rank, heard in self._heard.items() if now - heard.when > self._silent]
        return self._lost(silent[0]) if silent else None

    def _lost(self, rank: int) -> str:
        return (
            f"process {rank} of {self._size} is gone without a word (killed, out of memory, or its machine is lost), "
            f"expected all of them to the end; {GOES_ON}"
        )
