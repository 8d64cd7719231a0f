"""The server process: listens, and on SIGTERM finishes the accepted requests."""

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

KEEP_ALIVE = 30  # seconds for which an idle connection is kept
SHUTDOWN_SECONDS = 10  # for answers that are being sent when the engine has drained

logger = logging.getLogger("tpdm.serving")


class DrainingServer(uvicorn.Server):
    """uvicorn server that drains the engine on SIGTERM before it stops listening, and then exits with 0.

    While the engine drains, health checks are answered and new requests are refused.

    Args:
        config: Configuration of uvicorn.
        engine: Engine to drain.
        seconds: Maximum seconds for draining.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, seconds: float) -> None:
        super().__init__(config)
        self._engine, self._seconds = engine, seconds
        self._draining: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drains on the first signal, and stops at once on the second."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        logger.info("stopping: finishing the accepted requests; a second signal stops at once")
        self._draining = threading.Thread(target=self._drain, name="tpdm-drain", daemon=True)
        self._draining.start()

    def _drain(self) -> None:
        if not self._engine.drain(self._seconds):
            logger.warning("some requests were not finished within %g s", self._seconds)
        self.should_exit = True


def serve(
    engine: Engine,
    card: ModelCard,
    settings: Settings,
    sockets: Sequence[socket.socket],
    restart: Callable[[], None] | None = None,
) -> None:
    """Answers requests until SIGTERM or SIGINT. Then drains and closes the engine.

    Args:
        engine: Engine that makes the images.
        card: Public description of the model.
        settings: Settings of the server. Draining takes at most ``limits.seconds``.
        sockets: Bound sockets of ``tpdm.serving.http.sockets.reserved``.
        restart: Called on SIGHUP. Replaces the replicas and returns when the new ones are ready. None ignores SIGHUP.

    Raises:
        ConfigError: Another program has begun to listen at the address.
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
    """Returns the configuration of uvicorn for the application."""
    return uvicorn.Config(
        app,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.proxies,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _restart(restart: Callable[[], None]) -> None:
    logger.info("replacing replicas one by one")
    try:
        restart()
    except Exception:  # the old replicas continue
        logger.exception("the restart failed")
    else:
        logger.info("all replicas are replaced")
