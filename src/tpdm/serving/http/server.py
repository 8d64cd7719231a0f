"""The process of a server: it listens, and on SIGTERM it finishes what it has accepted."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tpdm.serving.engine.interface import Engine
from tpdm.serving.http.app import make_app
from tpdm.serving.http.settings import ModelCard, Settings
from tpdm.serving.http.sockets import BACKLOG, listen

KEEP_ALIVE = 30  # seconds that an idle connection is kept
LAST_WORDS = 10  # seconds for answers on their way when the engine is done

logger = logging.getLogger("tpdm.serving")


class DrainingServer(uvicorn.Server):
    """uvicorn, which would stop listening on SIGTERM, and end with the signal instead of 0.

    Args:
        config: of uvicorn.
        engine: is drained first; meanwhile health checks and refusals are still answered.
        seconds: for draining.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, seconds: float) -> None:
        super().__init__(config)
        self._engine, self._seconds = engine, seconds
        self._draining: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second ends at once."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        logger.info("stopping: finishing what was accepted; a second signal ends at once")
        self._draining = threading.Thread(target=self._drain, name="tpdm-drain", daemon=True)
        self._draining.start()

    def _drain(self) -> None:
        if not self._engine.drain(self._seconds):
            logger.warning("not everything was finished within %g s", self._seconds)
        self.should_exit = True


def serve(
    engine: Engine,
    card: ModelCard,
    settings: Settings,
    sockets: Sequence[socket.socket],
    restart: Callable[[], None] | None = None,
) -> None:
    """Answers requests until a signal, then drains, and closes the engine.

    Args:
        engine: see ``make_app``.
        card: see ``make_app``.
        settings: see ``make_app``; requests that are accepted have ``limits.seconds`` to finish.
        sockets: bound to where to listen, see ``tpdm.serving.http.sockets.reserved``.
        restart: what SIGHUP does: replaces replicas, and returns when the new ones are ready.

    Raises:
        ConfigError: another program has begun to listen there.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = make_config(make_app(engine, card, settings), settings)
    if restart is not None:
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=_restart, args=(restart,)).start())
    try:
        listen(sockets)
        DrainingServer(config, engine, settings.limits.seconds).run(list(sockets))
    finally:
        engine.close()


def make_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.proxies,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=LAST_WORDS,
    )


def _restart(restart: Callable[[], None]) -> None:
    logger.info("replacing replicas one by one")
    try:
        restart()
    except Exception:  # the old ones go on
        logger.exception("the restart failed")
    else:
        logger.info("all replicas are new")
