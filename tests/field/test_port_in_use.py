"""A server on a port in use: the model was loaded first, and then another library said so and ended the process."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tpdm.cli import app

LATER = (
    "tpdm.rewards.loading",
    "tpdm.serving.engine.engine",
    "tpdm.serving.engine.ray_replicas",
    "tpdm.serving.http.server",
    "tpdm.serving.reward_server",
)


@pytest.fixture
def port(monkeypatch):
    """One that another program listens at; what would be loaded behind the check cannot be."""
    for module in LATER:
        monkeypatch.setitem(sys.modules, module, None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield str(other.getsockname()[1])


@pytest.mark.parametrize(
    "command", [["serve"], ["serve", "--replicas", "2"], ["serve", "--tpm", "no/such/tpm"], ["reward", "serve"]]
)
def test_a_port_in_use_is_the_first_error(port, command):
    answer = CliRunner().invoke(app, [*command, "--port", port])
    words = f"--port is {port}, where another program listens. Use a free port or stop that program."
    assert (answer.exit_code, answer.output) == (2, f"Error: {words}\n")


@pytest.mark.parametrize("host", ["203.0.113.1", "1.2.3.4.5"])
def test_a_host_of_another_machine_is_the_first_error(port, host):
    answer = CliRunner().invoke(app, ["serve", "--host", host, "--port", port])
    assert answer.exit_code == 2
    assert answer.output.startswith(f"Error: --host is {host} (")
    assert answer.output.count("\n") == 1


def test_reserving_the_port_loads_no_torch():
    code = "import sys, tpdm.cli, tpdm.serving.http.sockets; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
