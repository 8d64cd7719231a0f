"""Addresses that a server can use, and the errors of those that it cannot."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tests.serving.test_draining import free_port
from tpdm.core.errors import ConfigError
from tpdm.serving.http.sockets import listen, reserved


def test_connections_are_refused_until_listen():
    port = free_port()
    with reserved("127.0.0.1", port) as sockets:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        listen(sockets)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with reserved("127.0.0.1", port):  # its connection of a moment ago keeps nothing
        pass
    assert all(one.fileno() == -1 for one in sockets)


def test_all_addresses_of_a_host_name_are_reserved(monkeypatch):
    port = free_port()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2")]
    off = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.1", port))  # of no machine
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [*found, found[0], off])
    with reserved("localhost", port) as sockets:
        assert [one.getsockname() for one in sockets] == [("127.0.0.1", port), ("127.0.0.2", port)]


@pytest.mark.parametrize("begin", ["before", "since"])
def test_a_port_in_use(begin):
    """Found when it is reserved, or, where two begin in the same moment, when the second listens."""
    port, words = free_port(), r"--port is \d+, where another program listens. Use a free port or stop that program"
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        if begin == "before":
            other.listen()
            with pytest.raises(ConfigError, match=words), reserved("127.0.0.1", port):
                pass
        else:
            with reserved("127.0.0.1", port) as sockets:
                other.listen()
                with pytest.raises(ConfigError, match=words):
                    listen(sockets)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (
            "203.0.113.1",
            "--host is 203.0.113.1 (Cannot assign requested address). It must be an address of this machine",
        ),
        ("no.such.host.invalid", "--host is no.such.host.invalid ("),
        ("x" * 70, f"--host is {'x' * 70} ("),
        ("1.2.3.4.5", "--host is 1.2.3.4.5 ("),
    ],
)
def test_a_host_that_is_not_this_machine(host, words, monkeypatch):
    real = socket.getaddrinfo

    def offline(name, *args, **options):
        return real(name, *args, **options, family=socket.AF_INET)

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(ConfigError) as refusal, reserved(host, free_port()):
        pass
    assert words in str(refusal.value)
    assert "Use 127.0.0.1 for clients on this machine, or 0.0.0.0 for all." in str(refusal.value)


def test_a_privileged_port(monkeypatch):
    def bind(self, address):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("socket.socket.bind", bind)
    words = "--port is 80, which this user may not use. Use a port of at least 1024"
    with pytest.raises(ConfigError, match=words), reserved("127.0.0.1", 80):
        pass
