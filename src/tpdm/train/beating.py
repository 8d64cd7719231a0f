"""The pulse of a run, from its first update to its last: one sentence where another process is lost."""

from __future__ import annotations

import _thread
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch.distributed as dist

from tpdm.train.pulse import SILENT, Pulse
from tpdm.train.team import LostProcess, Team
from tpdm.types import TrainingError


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
def beating(team: Team) -> Iterator[None]:
    """Inside the block the processes of a team watch over each other; a process alone has nobody to watch.

    Raises:
        TrainingError: another process stopped (with its sentence), or is gone, or this one was told to end.
    """
    if team.size == 1:
        yield
        return
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if team.leads else None
    port = team.from_lead(None if own is None else own.port)
    store = own or dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENT))
    pulse = Pulse(team.rank, team.size, store, _interrupt_main_thread, _kill)
    team.wait()
    pulse.start()
    before = signal.signal(signal.SIGTERM, _raise_told)
    try:
        yield
        pulse.stop()  # before the others are waited for: the first one to end is not missed
        team.wait()
    except (LostProcess, _ToldToEnd) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher that also noticed may not cut the sentence short
        raise TrainingError(pulse.explain()) from error
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pulse.leave(" ".join(str(error).split()) or type(error).__name__)
        raise
    finally:
        pulse.stop()
        signal.signal(signal.SIGTERM, before)
