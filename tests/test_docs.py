"""The documentation: its Python blocks, commands and notebooks run, and the site builds without a broken link."""

import json
import os
import pkgutil
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from safetensors.torch import save_file

from tests.support.processes import Process, run_python
from tests.support.release import make_checkpoint
from tpdm import __all__ as PUBLIC
from tpdm.config.recipe import Recipe
from tpdm.serving.http.metrics import COUNTERS, GAUGES
from tpdm.serving.http.protocol import GenerationRequest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
DECISIONS = sorted((DOCS / "decisions").glob("0*.md"))
SERVING = DOCS / "how-to" / "serve.md"
HUB = "MAPLE-WestLake-AIGC/TPDM"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Their commands are run with a smaller model.
TRAINING = ("how-to/train.md", "how-to/quality.md", "how-to/evaluate.md", "how-to/rewards.md")
# Commands that take minutes to hours, or answer for ever; what they do is tested elsewhere at small size.
LONG = (
    "tpdm demo",
    "tpdm eval recipes/tinyworld.yaml name=first",
    "tpdm tinyworld build --out runs/tinyworld",
    "tpdm reward serve --reward pickscore --port 8080 --token-env REWARD_TOKEN",
)


def place(page: Path) -> str:
    """How the tests name a page: its path in docs, or that of the README."""
    return (page.relative_to(DOCS) if page.is_relative_to(DOCS) else page.relative_to(ROOT)).as_posix()


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for lang, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if lang == language:
                found.append((place(page), body))
    return found


def commands() -> list[tuple[str, str]]:
    """(page, line); servers, which answer for ever, are asked for their help, which refuses what they would refuse."""
    lines = [
        (page, line.partition("  #")[0].strip())
        for page, body in (*blocks(""), *blocks("bash"))
        for line in body.splitlines()
        if line.startswith("tpdm ")
    ]
    lasting = [(page, f"{line} --help" if line.startswith("tpdm serve") else line) for page, line in lines]
    return [(page, line) for page, line in lasting if line not in LONG]


@pytest.mark.parametrize(("page", "body"), [block for block in blocks("python") if block[0] != place(SERVING)])
def test_python_blocks_run(page, body, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "src" / "tpdm" / "config" / "recipes")
    run = run_python(["-c", body], tmp_path, small="train(" in body)
    assert run.returncode == 0, f"{page}: {run.stderr}"


def put_release(folder):
    """The published checkpoint as a file, in a folder, and in the hub's cache, where it stands for the download."""
    cached = folder / "hub" / f"models--{HUB.replace('/', '--')}"
    for place in (folder, folder / "downloads" / "TPDM" / "sd3", cached / "snapshots" / ("a" * 40) / "sd3"):
        place.mkdir(parents=True, exist_ok=True)
        save_file(make_checkpoint(16, 16), place / "tpm-sd3.safetensors")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)


@pytest.mark.parametrize("page", sorted({page for page, _ in commands()}))
def test_commands_run_in_their_order(page, tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(ROOT / "src" / "tpdm" / "config" / "recipes")
    put_release(tmp_path)
    for _, line in (c for c in commands() if c[0] == page):
        words = ["-m", "tpdm.cli", *shlex.split(line)[1:]]
        if HUB in line:  # the hub's package reads the place of its cache when it is imported
            monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
            command = [sys.executable, *words]
            run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        else:
            run = run_python(words, tmp_path, small=page in TRAINING)
        assert run.returncode == 0, f"{page}: {line}: {run.stderr}"


@pytest.fixture
def guide(tmp_path):
    """The serving guide with its server running, at a port that is free here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    text = SERVING.read_text(encoding="utf-8").replace("8000", port)
    command = next(
        line for _, body in FENCE.findall(text) for line in body.splitlines() if line.startswith("tpdm serve")
    )
    server = Process(["-m", "tpdm.cli", *shlex.split(command)[1:]], tmp_path)
    try:
        wait_for(f"http://127.0.0.1:{port}/readyz", server)
        yield text
    finally:
        server.terminate()
    assert server.wait(60) == 0, server.stderr


def wait_for(address, server):
    for _ in range(1200):
        assert server.poll() is None, "the server has ended"
        try:
            if httpx.get(address, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_the_serving_guide(guide):
    direct = {"no_proxy": "*", "NO_PROXY": "*"}
    ran = 0
    for language, body in FENCE.findall(guide):
        if language == "python":
            run = run_python(["-c", body], env=direct)
            assert run.returncode == 0, run.stderr
            assert "steps at [1.0" in run.stdout
            assert run.stdout.endswith("image_generation.completed\n")
        lines = [line for line in body.splitlines() if line.startswith("curl ") and shutil.which("curl")]
        for line in lines:
            answer = subprocess.run(
                shlex.split(line), capture_output=True, text=True, env={**os.environ, **direct}, timeout=120
            ).stdout
            assert '"steps":' in answer or '"object":"list"' in answer, f"{line}: {answer}"
            ran += 1
    assert ran == 3 or shutil.which("curl") is None


def test_the_http_reference_names_every_metric_and_field():
    words = set(re.findall(r"\w+", (DOCS / "reference" / "http.md").read_text(encoding="utf-8")))
    assert set(GenerationRequest.model_fields) <= words
    shown = {*GAUGES, *(f"{name}_total" for name in COUNTERS), "tpdm_image_steps", "tpdm_image_seconds"}
    assert shown <= words
    assert {word for word in words if word.startswith("tpdm_")} - shown == {
        "tpdm_queue_seconds",
        "tpdm_http_responses_total",
    }


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    run = run_python(["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder], ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def page_of(site, name):
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_the_site_has_a_page_for_every_page_and_notebook(site):
    for page in (*DOCS.rglob("*.md"), *NOTEBOOKS):
        name = page.relative_to(DOCS).with_suffix("").as_posix().removesuffix("index")
        assert (site / name / "index.html").is_file(), name


def test_every_public_name_is_in_the_reference(site):
    anchors = set(re.findall(r' id="tpdm\.(\w+)"', page_of(site, "reference/python")))
    assert set(PUBLIC) <= anchors


def test_every_recipe_key_is_in_the_reference(site):
    rows = re.findall(r"<td><code>(\w+)</code></td>", page_of(site, "reference/recipe"))
    recipe = Recipe(name="any")
    for section, value in vars(recipe).items():
        keys = vars(value) if hasattr(value, "__dataclass_fields__") else {section: value}
        assert set(keys) <= set(rows), section


def test_every_command_is_in_the_reference(site):
    page = page_of(site, "reference/command-line")
    for command in {line.split()[1] for _, line in commands()} | {"demo", "reward serve", "tinyworld build"}:
        assert f"Usage: tpdm {command}" in page, command


def test_files_named_in_the_docs_exist():
    named = re.compile(r"\b(?:tests|benchmarks|src/tpdm|docs|deploy)/[\w./-]*\.(?:py|md|json|yaml|png)\b")
    pages = [page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if "lab" not in page.parts]
    missing = {
        (page.name, path)
        for page in pages
        if page.name != "CHANGELOG.md"
        for path in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    }
    assert missing == set()


def test_names_in_the_docs_can_be_imported():
    for page in PAGES:
        for name in set(re.findall(r"`(tpdm(?:\.\w+)+)`", page.read_text(encoding="utf-8"))):
            assert importable(name), f"{page.name} names {name}"


def importable(name):
    """Whether it is a module, or a name in one."""
    try:
        return pkgutil.resolve_name(name) is not None
    except (AttributeError, ImportError):
        return False


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name[:4])
def test_a_decision_is_one_short_page(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith(f"# {page.name[:4]}. ")
    assert [line for line in lines if line.startswith("## ")] == [
        "## Status",
        "## Context",
        "## Decision",
        "## Consequences",
    ]
    assert re.match(r"(Accepted|Superseded by \[\d{4}\].*), \d{4}-\d\d-\d\d\.$", lines[4])
    assert f"]({page.name})" in (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    run = run_python([DOCS / "hooks" / "execute.py", "--check", notebook], small=True)
    assert run.returncode == 0, run.stderr
