"""A real nginx with the documented configuration, before a server of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serving.browser import install

CONFIG = Path(__file__).parents[2] / "deploy" / "nginx.conf"
MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def find(name: str, package: str) -> str:
    """Path of a program; installs it where that is allowed, else skips and says why."""
    if shutil.which(name) is None:
        install(package)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here and it cannot be installed; as root: apt-get install {package}")
    return found


def write_site(folder: Path, backend: int, port: int) -> None:
    """The documented site with this machine's ports and a certificate made for it; nothing else is changed."""
    text = CONFIG.read_text(encoding="utf-8")
    names = {
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{backend};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/pictures": str(folder / "pictures"),
    }
    for ours, theirs in names.items():
        assert ours in text
        text = text.replace(ours, theirs)
    (folder / "site.conf").write_text(text, encoding="utf-8")
    # Workers of a root's nginx are somebody else, who may not look into the folder of a test.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user), encoding="utf-8")
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pictures.example.org"]
    files = ["-keyout", folder / "pictures.key", "-out", folder / "pictures.pem"]
    subprocess.run([find("openssl", "openssl"), *words, *files], check=True, capture_output=True, timeout=120)


@contextmanager
def nginx(folder: Path, backend: int, port: int):
    """Runs until the end of the block; gives the warnings of ``nginx -t``."""
    program = find("nginx", "nginx-light")
    write_site(folder, backend, port)
    command = [program, "-p", folder, "-c", folder / "nginx.conf"]
    tried = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=60)
    assert tried.returncode == 0, tried.stderr
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not _listens(port):
            assert process.poll() is None, (folder / "error.log").read_text(encoding="utf-8")
            assert time.monotonic() < end
            time.sleep(0.02)
        yield tried.stderr
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
