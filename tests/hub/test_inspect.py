"""An inspection reports what is wrong, where loading would only raise an error."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from tpdm.cli import app
from tpdm.core.errors import CheckpointError
from tpdm.policies.hub.inspect import describe, inspect_tpm
from tpdm.policies.hub.push import publish_to_folder


@pytest.fixture
def published(run, tmp_path):
    return publish_to_folder(run / "best", tmp_path / "published")


def test_the_report_contains_the_purpose_of_the_tpm(run):
    report = inspect_tpm(run / "best")
    text = describe(report)
    assert report.problems == ()
    assert report.parameters == sum(p.numel() for p in __import__("tpdm").load_policy(run / "best").parameters())
    assert "for        gaussian (None)" in text
    assert "mean steps 4.5 in validation" in text
    assert "evaluated  static-28: 28.00 steps, reward -0.2500" in text
    assert "update 10, seed 0" in text
    assert text.endswith("sound      yes")


def test_json_has_the_same_content(run):
    answer = CliRunner().invoke(app, ["inspect", str(run / "best"), "--json"])
    assert answer.exit_code == 0
    said = json.loads(answer.output)
    assert said["sound"] is True
    assert said["config"]["backbone_name"] == "gaussian"
    assert said["evaluation"][0]["name"] == "tpdm"
    assert [row["update"] for row in said["validations"]] == [0, 3, 6, 9, 10]
    assert said["files"]["model.safetensors"]["bytes"] > 1000


def test_the_shipped_tpm_is_intact():
    answer = CliRunner().invoke(app, ["inspect", "tinyworld"])
    assert answer.exit_code == 0, answer.output
    assert "evaluated  no" in answer.output


def flip(path):
    """Flip one bit in the middle of a weight. The file is still a safetensors file."""
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: flip(f / "model.safetensors"), "model.safetensors has another sha256 than at its publication"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickled"), "pickle"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "sha256.json").write_text("[1"), "sha256.json cannot be read"),
        (lambda f: (f / "README.md").write_text("changed"), "README.md has another sha256"),
    ],
)
def test_damage_is_a_problem_and_exit_code_1(published, damage, problem):
    damage(published)
    answer = CliRunner().invoke(app, ["inspect", str(published)])
    assert answer.exit_code == 1
    assert problem in answer.output
    assert answer.output.strip().endswith("sound      no")


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A hub that has the published files."""

    def download(name, revision, allow_patterns):
        folder = tmp_path / "snapshot"
        folder.mkdir()
        for path in published.iterdir():
            if path.name in allow_patterns:
                shutil.copy(path, folder)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return published


def test_digests_come_from_the_hub_too(hub):
    report = inspect_tpm("me/my-tpm")
    assert set(report.files) == {"model.safetensors", "config.json", "sha256.json"}
    assert (report.problems, report.notes) == ((), ())


def test_a_weight_that_changed_on_the_hub_is_noticed(hub):
    flip(hub / "model.safetensors")
    assert inspect_tpm("me/my-tpm").problems == ("model.safetensors has another sha256 than at its publication",)


def test_a_tpm_of_the_hub_needs_no_digests(hub):
    (hub / "sha256.json").unlink()
    report = inspect_tpm("me/my-tpm")
    assert report.problems == ()
    assert any(note.startswith("no sha256.json") for note in report.notes)


def test_pickles_and_missing_digests_are_notes(run, tmp_path):
    shutil.copytree(run / "best", tmp_path / "tpm")
    (tmp_path / "tpm" / "optimizer.pt").write_bytes(b"PK")
    report = inspect_tpm(tmp_path / "tpm")
    assert report.problems == ()
    assert any(note.startswith("optimizer.pt is a pickle") for note in report.notes)
    assert any(note.startswith("no sha256.json") for note in report.notes)


def test_no_tpm_at_all_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="must be one that save_pretrained wrote"):
        inspect_tpm(tmp_path / "empty")
    assert CliRunner().invoke(app, ["inspect", str(tmp_path / "nothing")]).exit_code == 2


@pytest.mark.parametrize("where", [[], ["--folder", "a", "--hub", "b/c"]])
def test_push_needs_exactly_one_destination(run, where):
    answer = CliRunner().invoke(app, ["push", str(run / "best"), *where])
    assert answer.exit_code == 2
    assert "Give one of them" in answer.output
