"""Reserves the address of a server before a model is loaded, so that an unusable address fails at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

BACKLOG = 2048  # maximum number of connections that wait to be accepted


@contextmanager
def reserved(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Context manager with the bound sockets of an address. Connections are refused until ``listen``.

    Args:
        host: Host name or address. A name may have several addresses.
        port: Port, 1 to 65535.

    Raises:
        ConfigError: Another program listens at the port, or this machine or user may not use the address.
    """
    with ExitStack() as stack:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise _refusal(error, host, port) from error
        bound, missing = [], None
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            one = stack.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":  # else recently closed connections block a restart
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise _refusal(error, host, port) from error
                missing = error  # "localhost" may have an address that is disabled
            else:
                bound.append(one)
        if not bound:
            raise _refusal(missing, host, port) from missing
        yield bound


def listen(sockets: Sequence[socket.socket]) -> None:
    """Starts accepting connections.

    Args:
        sockets: Sockets of ``reserved``.

    Raises:
        ConfigError: Another program has begun to listen at the address since the sockets were reserved.
    """
    try:
        for one in sockets:
            one.listen(BACKLOG)
    except OSError as error:
        raise _refusal(error, *one.getsockname()[:2]) from error


def _refusal(error: Exception | None, host: str, port: int) -> Exception:
    from tpdm.core.errors import ConfigError  # imports torch, which a port in use should not wait for

    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return ConfigError(f"--port is {port}, where another program listens. Use a free port or stop that program.")
    if number in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"--port is {port}, which this user may not use. Use a port of at least 1024, behind a proxy if needed."
        )
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        f"--host is {host} ({reason}). It must be an address of this machine. Use 127.0.0.1 for clients on this "
        "machine, or 0.0.0.0 for all."
    )
