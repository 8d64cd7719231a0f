"""The files of deploy/: the command of the container behind nginx as documented, and the systemd unit."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import parse_events, until
from tests.serving.nginx import CONFIG, find, nginx
from tests.serving.test_draining import answers, free_port
from tests.support.processes import Process, run_python
from tpdm.serving.http.settings import Limits

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "how-to" / "deploy.md"
PATH, TOKEN = "/v1/images/generations", "s3cret"


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest) of each line."""
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def instruction(name: str) -> str:
    (found,) = [rest for word, rest in dockerfile() if word == name]
    return found


def guide_command(begin: str) -> list[str]:
    """The one command of the guide that begins so."""
    text = GUIDE.read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(begin)]
    return shlex.split(line, comments=True)


def container_command() -> list[str]:
    """What ``docker run`` of the guide starts: the entry point with the arguments behind the image's name."""
    run = guide_command("docker run")
    return [*json.loads(instruction("ENTRYPOINT")), *run[run.index("tpdm") + 1 :]]


def started(command: list[str]) -> Process:
    assert command[0] == "tpdm"
    return Process(["-m", "tpdm.cli", *command[1:]], env={"TPDM_TOKEN": TOKEN})


@pytest.fixture(scope="module")
def server():
    """The container's command on a free port; a client that asks it past the proxy."""
    port = free_port()
    process = started([*container_command(), "--port", str(port), "--allowed-host", "pictures.example.org"])
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "pictures.example.org"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=120) as client:
            until(lambda: process.poll() is not None or answers(client), 300)
            assert process.poll() is None, process.stderr
            yield client
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def proxied(server, tmp_path_factory):
    """A client that asks nginx by its public name, over TLS."""
    port = free_port()
    with nginx(tmp_path_factory.mktemp("nginx"), server.base_url.port, port) as warnings:
        assert "warn" not in warnings
        # The certificate is made by the test and names nobody that this machine trusts.
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}", headers=server.headers, trust_env=False, timeout=120, verify=False
        ) as client:
            yield client


def metric(server, name: str) -> float:
    (value,) = re.findall(rf"^{name} (\S+)$", server.get("/metrics").text, re.MULTILINE)
    return float(value)


def test_an_image_through_nginx_has_a_url_with_the_public_name(proxied):
    answer = proxied.post(PATH, json={"prompt": "red circle", "num_inference_steps": 2, "response_format": "url"})
    assert answer.status_code == 200, answer.text
    url = answer.json()["data"][0]["url"]
    assert url.startswith("https://pictures.example.org/v1/images/files/")
    picture = proxied.get(url.removeprefix("https://pictures.example.org"))
    assert picture.content.startswith(b"\x89PNG")
    assert proxied.get("/").headers["content-type"].startswith("text/html")
    assert proxied.post(PATH, json={"prompt": "a"}, headers={"Authorization": "Bearer guess"}).status_code == 401


def test_events_are_not_buffered_and_a_disconnected_client_frees_its_slot(proxied, server):
    before = metric(server, "tpdm_images_cancelled_total")
    images, steps = Limits().images, Limits().steps
    body = {"prompt": "red circle", "n": images, "num_inference_steps": steps, "stream": True, "partial_images": 0}
    with proxied.stream("POST", PATH, json=body) as answer:
        assert answer.status_code == 200
        events = parse_events(answer.iter_lines())
        names = [next(events)[0] for _ in range(3)]
        # Nearly all steps are to come, and three events are here: nothing waits for a buffer or for the end.
        assert names == ["image_generation.created", "image_generation.step", "image_generation.step"]
        assert metric(server, "tpdm_slots_in_use") == images
    until(lambda: metric(server, "tpdm_images_cancelled_total") == before + images, 60)
    assert metric(server, "tpdm_slots_in_use") == 0


def test_nginx_refuses_a_body_that_is_too_long(proxied, server):
    before = metric(server, "tpdm_images_refused_total")
    answer = proxied.post(PATH, json={"prompt": "a" * 2 * Limits().body})
    assert answer.status_code == 413
    assert "nginx" in answer.text
    assert metric(server, "tpdm_images_refused_total") == before


def test_metrics_are_available_on_this_machine_only(proxied, server):
    assert proxied.get("/metrics").status_code == 403
    assert server.get("/metrics").status_code == 200


def test_the_limits_of_the_proxy_match_those_of_the_server():
    text = CONFIG.read_text(encoding="utf-8")
    (size,) = re.findall(r"client_max_body_size (\d+)k;", text)
    assert int(size) * 1024 == Limits().body
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(seconds) > Limits().seconds


def test_the_health_check_of_the_container_passes(server):
    words = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert words[:2] == ["python", "-c"]
    check = words[2].replace("127.0.0.1:8000", f"127.0.0.1:{server.base_url.port}")
    # It asks by address, and the server answers to a public name alone.
    assert subprocess.run([sys.executable, "-c", check], timeout=60, capture_output=True).returncode == 0


def test_the_files_of_the_container_exist():
    names = [word for word, _ in dockerfile()]
    assert names[0] == "FROM"
    for word, rest in dockerfile():
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    (extra,) = re.findall(r'pip install --no-cache-dir "\.\[(\w+)\]"', (DEPLOY / "Dockerfile").read_text("utf-8"))
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert int(instruction("EXPOSE")) == 8000
    assert names.index("USER") < names.index("ENTRYPOINT")  # without rights


def test_commands_of_container_unit_and_guide_are_valid():
    unit = (DEPLOY / "tpdm.service").read_text(encoding="utf-8")
    (start,) = re.findall(r"^ExecStart=\S+/(tpdm .*)$", unit, re.MULTILINE)
    defaults = [*json.loads(instruction("ENTRYPOINT")), *json.loads(instruction("CMD"))]
    for command in (shlex.split(start), defaults, container_command()):
        run = run_python(["-m", "tpdm.cli", *command[1:], "--help"])
        assert run.returncode == 0, run.stderr


def test_the_guide_quotes_the_files():
    text = GUIDE.read_text(encoding="utf-8")
    for name in ("Dockerfile", "tpdm.service", "nginx.conf"):
        assert f"](../../deploy/{name})" in text
    build, run, stop = (guide_command(f"docker {word}") for word in ("build", "run", "stop"))
    assert build[build.index("-f") + 1] == "deploy/Dockerfile"
    assert build[build.index("-t") + 1] in run
    assert int(stop[stop.index("--time") + 1]) >= Limits().seconds
    variable = run[run.index("-e") + 1]
    unit = (DEPLOY / "tpdm.service").read_text(encoding="utf-8")
    assert f"--token-env {variable}" in unit
    assert run[run.index("--token-env") + 1] == variable
    # Any address is believed where the port is published for this machine alone.
    assert run[run.index("--forwarded-allow-ips") + 1] == "*"
    assert run[run.index("-p") + 1].startswith("127.0.0.1:")
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(seconds) > Limits().seconds
    assert re.findall(r"^EnvironmentFile=(\S+)$", unit, re.MULTILINE)[0] in text
    (name,) = re.findall(r"server_name (\S+);", CONFIG.read_text(encoding="utf-8"))
    assert f"--allowed-host {name}" in text


def test_systemd_accepts_the_unit(tmp_path):
    program = find("systemd-analyze", "systemd")
    text = (DEPLOY / "tpdm.service").read_text(encoding="utf-8")
    (tmp_path / "tpdm.service").write_text(text.replace("/opt/tpdm/bin/tpdm", sys.executable), encoding="utf-8")
    run = subprocess.run([program, "verify", tmp_path / "tpdm.service"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "tpdm.service" not in run.stdout + run.stderr  # no warning names it
