"""The address of a server, taken before anything is loaded, so that what cannot be had is said at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

BACKLOG = 2048  # connections that may wait to be accepted


@contextmanager
def reserved(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets of an address, closed at the end. Until ``listen`` clients are turned away.

    Args:
        host: a name or an address; a name may have several.
        port: 1 to 65535.

    Raises:
        ConfigError: another program listens there, or this machine or user may not.
    """
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise _refusal(error, host, port) from error
        taken, missing = [], None
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = stack.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":  # connections that have just ended keep no port from a restart
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise _refusal(error, host, port) from error
                missing = error  # "localhost" may have an address that is switched off
            else:
                taken.append(one)
        if not taken:
            raise _refusal(missing, host, port) from missing
        yield taken


def listen(sockets: Sequence[socket.socket]) -> None:
    """Lets clients in.

    Raises:
        ConfigError: another program has begun to listen there since the sockets were reserved.
    """
    try:
        for one in sockets:
            one.listen(BACKLOG)
    except OSError as error:
        raise _refusal(error, *one.getsockname()[:2]) from error


def _refusal(error: Exception | None, host: str, port: int) -> Exception:
    from tpdm.core.errors import ConfigError  # which brings torch: a port in use must not wait for it

    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return ConfigError(
            f"got --port {port}, where another program listens, expected a free one; stop that program or give another."
        )
    if number in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"got --port {port}, which this user may not listen at, expected one from 1024 on; give such a port, and "
            "let a proxy have that one."
        )
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        f"got --host {host} ({reason}), expected an address of this machine; give 127.0.0.1 for this machine alone, or "
        "0.0.0.0 for all."
    )
