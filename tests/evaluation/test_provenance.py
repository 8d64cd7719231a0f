"""The provenance contains the commit of the running code, or none."""

import re
import subprocess
from dataclasses import replace

import pytest
import torch

from tpdm.config.recipe import BackboneConfig, Recipe
from tpdm.evaluation.summary import git_revision, hardware


def git(folder, *words):
    author = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "tracked.py").write_text("", encoding="utf-8")
    git(tmp_path, "init")
    git(tmp_path, "add", "tracked.py")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_a_file_in_a_checkout_has_its_commit(checkout):
    assert re.fullmatch("[0-9a-f]{40}", git_revision(checkout / "tracked.py") or "")


def test_a_copy_installed_in_another_checkout_has_no_commit(checkout):
    installed = checkout / "venv" / "installed.py"
    installed.parent.mkdir()
    installed.write_text("", encoding="utf-8")
    assert git_revision(installed) is None


def test_a_missing_git_does_not_stop_an_evaluation(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert git_revision(checkout / "tracked.py") is None


def test_a_folder_without_git_has_no_commit(tmp_path):
    (tmp_path / "file.py").write_text("", encoding="utf-8")
    # Whatever lies above a temporary folder, the file is not in it.
    assert git_revision(tmp_path / "file.py") is None


def test_a_gpu_is_named_with_the_dtype_of_the_backbone(monkeypatch):
    recipe = Recipe("run", backbone=BackboneConfig("tinyworld", device="cuda:1", dtype="bf16"))
    monkeypatch.setattr("tpdm.evaluation.tasks.resolve_device", lambda name: name)  # on a machine that has it
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {"cuda:1": "NVIDIA H200"}[device])
    assert hardware(recipe).startswith("NVIDIA H200, bf16, ")
    plain = hardware(replace(recipe, backbone=replace(recipe.backbone, device="cpu")))
    assert re.fullmatch(r"\d+ CPU threads, \w+", plain)
