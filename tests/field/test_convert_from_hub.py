"""Conversion from the hub: the published checkpoint is in a subfolder of its repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.support.release import make_checkpoint
from tpdm.cli import app
from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.policies.conversion import convert
from tpdm.policies.pretrained import from_pretrained

REPO, SHA = "MAPLE-WestLake-AIGC/TPDM", "a" * 40


@pytest.fixture
def release(tmp_path):
    """A repository on disk, with the checkpoint in a folder and other files."""
    folder = tmp_path / "release"
    (folder / "sd3").mkdir(parents=True)
    (folder / "README.md").write_text("TPDM")
    (folder / "sd3/config.json").write_text("{}")
    save_file(make_checkpoint(16, 16), folder / "sd3/model.safetensors")
    return folder


@pytest.fixture
def hub(release, monkeypatch):
    """A fake hub with that repository. The list contains the calls."""
    asked: list[Any] = []

    def names(self: Any, repository: str, revision: str | None = None) -> list[str]:
        asked.append((repository, revision))
        if repository != REPO:
            raise huggingface_hub.errors.OfflineModeIsEnabled(f"cannot reach {repository}")
        return [path.relative_to(release).as_posix() for path in release.glob("**/*") if path.is_file()]

    def download(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((repository, name, revision))
        return str(release / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", names)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def weights(folder: Path) -> torch.Tensor:
    return from_pretrained(folder)[0].conv1.weight


def refusal(tmp_path: Path, place: Any, kind: type[Exception] = CheckpointError, **options: Any) -> str:
    with pytest.raises(kind, match=r"^.*\. [A-Z].*\.$") as caught:
        convert(place, tmp_path / "tpm", **options)
    assert not (tmp_path / "tpm").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["convert", *words])


@pytest.mark.parametrize("words", [[REPO, "--subfolder", "sd3"], [f"{REPO}/sd3"]])
def test_a_folder_of_a_repository(words: list[str], hub: list[Any], release: Path, tmp_path: Path) -> None:
    answer = run(*words, "--revision", "v1", "--out", str(tmp_path / "tpm"))
    assert answer.exit_code == 0, answer.output
    assert hub == [(REPO, "v1"), (REPO, "sd3/model.safetensors", "v1")]
    by_file = convert(release / "sd3/model.safetensors", tmp_path / "by-file")
    assert torch.equal(weights(tmp_path / "tpm"), weights(by_file))
    trained = json.loads((tmp_path / "tpm/config.json").read_text())["trained"]
    assert trained["converted_from"] == f"{REPO}/sd3/model.safetensors"
    assert trained["sha256"] == json.loads((by_file / "config.json").read_text())["trained"]["sha256"]


@pytest.mark.parametrize(("place", "options"), [("release", {"subfolder": "sd3"}), ("release/sd3", {})])
def test_a_folder_on_this_machine(place: str, options: dict[str, str], release: Path, tmp_path: Path) -> None:
    convert(str(tmp_path / place), tmp_path / "tpm", **options)
    assert torch.equal(weights(tmp_path / "tpm"), weights(convert(release / "sd3/model.safetensors", tmp_path / "b")))


def test_only_shards_with_the_tpm_are_downloaded(hub: list[Any], release: Path, tmp_path: Path) -> None:
    whole = convert(release / "sd3/model.safetensors", tmp_path / "whole")
    (release / "sd3/model.safetensors").unlink()
    tensors = make_checkpoint(16, 16)
    parts = {"frozen": {"agent_model.transformer.w": torch.zeros(2)}}
    parts |= {"a": dict(list(tensors.items())[:3]), "b": dict(list(tensors.items())[3:])}
    for name, part in parts.items():
        save_file(part, release / f"sd3/{name}.safetensors")
    places = {key: f"{name}.safetensors" for name, part in parts.items() for key in part}
    (release / "sd3/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for place in (f"{REPO}/sd3", release / "sd3"):
        assert torch.equal(weights(convert(place, tmp_path / "tpm")), weights(whole))
    assert (REPO, "sd3/frozen.safetensors", None) not in hub
    (release / "sd3/model.safetensors.index.json").write_text("[")
    assert "is no index of shards" in refusal(tmp_path / "other", release / "sd3")


def test_none_and_several(hub: list[Any], release: Path, tmp_path: Path) -> None:
    for place in (REPO, str(release)):
        assert "has no .safetensors file. It must have" in refusal(tmp_path, place)
        assert refusal(tmp_path, place).endswith("Give --subfolder sd3.")
        assert f"{place}/flux" in refusal(tmp_path, place, subfolder="flux")
    save_file({"a": torch.zeros(1)}, release / "sd3/other.safetensors")
    for place in (REPO, str(release)):
        assert "(sd3/model.safetensors, sd3/other.safetensors)" in refusal(tmp_path, place, subfolder="sd3")
    for path in (release / "sd3").glob("*.safetensors"):
        path.unlink()
    assert refusal(tmp_path, release).endswith("Correct the place.")
    (release / "sd3/pytorch_model.bin").write_bytes(b"\x80")
    assert "has only sd3/pytorch_model.bin. Pickles are never loaded" in refusal(tmp_path, REPO, subfolder="sd3")
    assert "Pickles are never loaded" in refusal(tmp_path, release / "sd3/pytorch_model.bin")


def test_places_that_cannot_be_reached(
    hub: list[Any], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("nobody/nothing", "nobody/nothing/sd3"):
        answer = run(place, "--out", str(tmp_path / "tpm"))
        assert answer.exit_code == 2
        assert answer.output.startswith("Error: 'nobody/nothing' is no file or folder here and cannot be downloaded")
        assert "OfflineModeIsEnabled" in answer.output
    assert "is no file or folder here" in refusal(tmp_path, "nothing")
    assert "is no file or folder here" in refusal(tmp_path, f"{REPO}/sd3", subfolder="sd3")
    assert "is no file. It must be" in refusal(tmp_path, "runs/first/tpm.safetensors")
    assert "is no file. It must be" in refusal(tmp_path, Path("runs/first"))
    assert "subfolder is 'sd3', but" in refusal(
        tmp_path, release / "sd3/model.safetensors", ConfigError, subfolder="sd3"
    )
    assert "revision is 'v1', but" in refusal(tmp_path, release, ConfigError, revision="v1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]


def test_a_download_that_breaks_off(
    hub: list[Any], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = release / "sd3/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is cut short or damaged" in refusal(tmp_path, REPO, subfolder="sd3")

    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert "cannot be downloaded from the hub (ConnectionError)" in refusal(tmp_path, REPO, subfolder="sd3")


def test_without_a_network_earlier_downloads_are_used(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(SHA)
    (cached / "snapshots").mkdir()
    release.rename(cached / "snapshots" / SHA)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = convert(REPO, tmp_path / "tpm", subfolder="sd3")
    assert from_pretrained(folder)[1].trained["converted_from"] == f"{REPO}/sd3/model.safetensors"
