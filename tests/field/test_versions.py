"""Packages older than the floors of pyproject.toml, and differences between transformers 4 and 5.

``pip install`` keeps installed packages. With transformers 4, sampling from the embedded model ended in an ImportError
about protobuf, because its tokenizer was shipped in the format of transformers 5 only. Every CLIP reward ended in one
about ``CLIPImageProcessorPil``. A public report of the same kind:
https://github.com/huggingface/diffusers/issues/3028.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

import tpdm.cli.doctor
import tpdm.pipelines
import tpdm.rewards
from tests.support.floors import FLOOR, floors
from tpdm.cli import app
from tpdm.core.errors import ConfigError, PromptError, TpdmError, TrainingError
from tpdm.core.versions import check_versions, misfit, required
from tpdm.data.columns import Columns
from tpdm.data.readers import read_parquet
from tpdm.pipelines.time_mapping import flow_times
from tpdm.policies.fixed import FixedSchedule
from tpdm.tinyworld.build.stages import build
from tpdm.tinyworld.builtin import WEIGHTS
from tpdm.tinyworld.tokenizer import vocabulary
from tpdm.training.train import translate_disk_full

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
IMPORT = re.compile(r"^ *(?:from (\w+)[\w.]* import |import (\w+)[\w.]*(?: as \w+)?$)", re.MULTILINE)
OLD = {"diffusers": "0.30.0", "transformers": "4.40.0", "numpy": "1.24.0"}


@pytest.fixture
def old(monkeypatch, tmp_path):
    """A function that makes installed packages appear old."""

    def pretend(*packages: str) -> Path:
        for name in packages:
            folder = tmp_path / f"{name}-{OLD[name]}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {OLD[name]}\n")
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return pretend


@pytest.mark.parametrize(
    ("room", "package"),
    [(tpdm.pipelines, "diffusers"), (tpdm.pipelines, "transformers"), (tpdm.rewards, "transformers")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_version_that_is_too_old_is_refused_in_one_sentence(room, package, old):
    old(package)
    words = rf"^{package} {OLD[package]} is installed\. It must be {package}>=.*\. Run pip install -U"
    with pytest.raises(TpdmError, match=words) as e:
        importlib.reload(room)
    assert "\n" not in str(e.value)


def test_the_command_line_reports_it_too(old, tmp_path, monkeypatch):
    old("transformers")
    for name in [name for name in sys.modules if name.startswith("tpdm.pipelines")]:
        monkeypatch.delitem(sys.modules, name)  # as in a new process
    answer = CliRunner().invoke(app, ["sample", "--prompt", "red circle", "--out", str(tmp_path / "out")])
    assert (answer.exit_code, answer.output.count("\n")) == (2, 1)
    assert answer.output.startswith("Error: transformers 4.40.0 is installed. It must be transformers>=")


def test_the_doctor_names_floors_and_what_is_below_them(old):
    old("numpy", "diffusers")
    numpy, diffusers = tpdm.cli.doctor._package("numpy"), tpdm.cli.doctor._package("diffusers")
    assert numpy.value == f"1.24.0 ({required('numpy')})"
    assert numpy.fix == f"pip install -U 'numpy{required('numpy')}'"
    assert not numpy.stops_demo
    assert diffusers.stops_demo  # its pipelines are refused
    assert tpdm.cli.doctor._extra("filelock", "eval").fix is None


def test_a_development_version_counts_as_the_release_it_leads_to(monkeypatch):
    floor = required("diffusers").removeprefix(">=")
    monkeypatch.setattr(metadata, "version", lambda name: f"{floor}.dev0+git1234")
    assert misfit("diffusers") is None


def test_an_absent_or_unused_package_is_not_reported():
    check_versions("no-such-package")
    assert required("no-such-package") == ""


def test_pyproject_has_one_floor_for_each_package():
    text = PYPROJECT.read_text(encoding="utf-8")
    for one in FLOOR.finditer(text.split("\n[project.scripts]")[0].split("\ndependencies = ")[1]):
        assert floors(text)[one["name"]] == one["version"]
    assert {"torch", "diffusers", "transformers", "accelerate"} <= set(floors(text))


def test_every_import_of_the_library_has_a_floor():
    """Imported packages are named in pyproject.toml, and not only installed by another package."""
    other_names = {"PIL": "pillow", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub"}
    # These are parts of what brings them, and move with it.
    other_names |= {"starlette": "fastapi", "pydantic_core": "pydantic", "tokenizers": "transformers"}
    other_names |= {"prometheus_client": "prometheus-client"}
    texts = [path.read_text(encoding="utf-8") for path in (PYPROJECT.parent / "src").rglob("*.py")]
    named = {found[1] or found[2] for text in texts for found in IMPORT.finditer(text)}
    outside = named - set(sys.stdlib_module_names) - {"tpdm", "__future__"}
    known = set(floors(PYPROJECT.read_text(encoding="utf-8")))
    assert {other_names.get(name, name) for name in outside} - known == set()


@pytest.mark.parametrize("place", ["pipeline/tokenizer", "pipeline/tokenizer_2", "reward"])
def test_the_embedded_tokenizers_are_there_for_transformers_4_and_5(place):
    folder = WEIGHTS / place
    assert json.loads((folder / "vocab.json").read_text(encoding="utf-8")) == vocabulary()
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model["vocab"] == vocabulary()
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert merges == [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]


def test_a_torch_without_muon_builds_no_embedded_model(monkeypatch, tmp_path):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"has no Muon\. It must be torch>=2\.9\. Run pip install -U torch\.$"):
        build(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_recognized_with_old_and_new_safetensors(tmp_path):
    for words in ("I/O error: No space left (os error 28)", "IoError(Os { code: 28, kind: StorageFull })"):
        with pytest.raises(TrainingError, match=r"The disk of .* is full"), translate_disk_full(tmp_path):
            raise SafetensorError(words)


def test_a_package_too_new_for_another_one_is_reported(monkeypatch, tmp_path):
    """New pyarrow beside numpy 1: pip installs both, and the import fails."""
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))  # lacks every name
    with pytest.raises(PromptError, match=r"cannot import name .* Run pip install -U 'tpdm\[data\]'\.$"):
        next(read_parquet(tmp_path / "prompts.parquet", Columns("prompts.parquet")))


def test_a_last_step_from_zero_to_zero_is_dropped():
    """Before diffusers 0.39, Z-Image's pipeline has such a step. Fixed schedules with its times were refused."""
    scheduler = SimpleNamespace(sigmas=torch.tensor([1.0, 0.5, 0.0, 0.0]))
    assert flow_times(scheduler) == [1.0, 0.5, 0.0]
    assert FixedSchedule(flow_times(scheduler)).steps == 2
