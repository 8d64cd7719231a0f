"""What the documentation shows is run as it stands there: Python blocks, and every `tpdm` command."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.support.release import make_checkpoint

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that take minutes to hours, or answer for ever; what they do is tested elsewhere at small size.
LONG = (
    "tpdm demo",
    "tpdm tinyworld build --out runs/tinyworld",
    "tpdm reward serve --reward pickscore --port 8080 --token-env REWARD_TOKEN",
)


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for lang, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if lang == language:
                found.append((page.name, body))
    return found


def commands() -> list[tuple[str, str]]:
    lines = [
        (page, line.partition("  #")[0].strip())
        for page, body in (*blocks(""), *blocks("bash"))
        for line in body.splitlines()
        if line.startswith("tpdm ")
    ]
    return [(page, line) for page, line in lines if line not in LONG]


@pytest.mark.parametrize(("page", "body"), blocks("python"))
def test_python_blocks_run(page, body, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "src" / "tpdm" / "recipes")
    run = subprocess.run([sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, f"{page}: {run.stderr}"


@pytest.mark.parametrize("page", sorted({page for page, _ in commands()}))
def test_commands_run_in_their_order(page, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "src" / "tpdm" / "recipes")
    save_file(make_checkpoint(16, 16), tmp_path / "tpm-sd3.safetensors")  # stands for the download
    for _, line in (c for c in commands() if c[0] == page):
        words = [sys.executable, "-m", "tpdm.cli", *shlex.split(line)[1:]]
        run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, f"{page}: {line}: {run.stderr}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
