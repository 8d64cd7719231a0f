"""Publishing writes a complete folder that loads, or nothing, and makes only the needed calls to the hub."""

import shutil

import huggingface_hub
import pytest
import torch

from tpdm.core.errors import CheckpointError
from tpdm.evaluation.report.curves import training_curves
from tpdm.policies.hub import push
from tpdm.policies.hub.inspect import inspect_tpm
from tpdm.policies.hub.push import publish_to_folder, push_to_hub
from tpdm.policies.pretrained import load_policy
from tpdm.tinyworld.builtin import WEIGHTS


def test_a_published_folder_loads_and_is_intact(run, tmp_path):
    target = publish_to_folder(run / "best", tmp_path / "new" / "published", draw_curves=training_curves)
    assert target == tmp_path / "new" / "published"
    names = {p.name for p in target.iterdir()}
    pictures = {"objective.png", "steps.png", "score.png"}
    assert names == {"model.safetensors", "config.json", "README.md", "sha256.json", *pictures}
    assert all((target / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    card = (target / "README.md").read_text(encoding="utf-8")
    assert "# published" in card
    assert all(f"({name})" in card for name in pictures)
    one, other = load_policy(run / "best"), load_policy(target)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    report = inspect_tpm(target)
    assert (report.problems, report.notes) == ((), ())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["published"]


def test_an_older_tpm_is_replaced_and_other_targets_raise(run, tmp_path):
    target = publish_to_folder(run / "best", tmp_path / "published")
    (target / "README.md").write_text("old", encoding="utf-8")
    publish_to_folder(run / "last", target)
    assert (target / "README.md").read_text(encoding="utf-8") != "old"
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"contains no TPM\. The target must be a new folder"):
        publish_to_folder(run / "best", other)
    assert [p.name for p in other.iterdir()] == ["chapter.txt"]
    with pytest.raises(CheckpointError, match="source and target are both"):
        publish_to_folder(target, target)


def test_a_folder_of_another_model_is_kept(run, tmp_path):
    """Its config.json is not a TPM's."""
    model = tmp_path / "transformer"
    shutil.copytree(WEIGHTS / "pipeline" / "transformer", model)
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    assert "config.json" in before
    with pytest.raises(CheckpointError, match=r"contains no TPM\. The target must be a new folder"):
        publish_to_folder(run / "best", model)
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


@pytest.mark.parametrize("name", ["notes.txt", "samples/0000.png", "steps.png/0000.png"])
def test_files_next_to_a_tpm_are_not_deleted(run, tmp_path, name):
    target = tmp_path / "mine"
    shutil.copytree(run / "best", target)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"contains '{name.split('/')[0]}', which would be deleted") as caught:
        publish_to_folder(run / "last", target)
    assert "\n" not in str(caught.value)
    assert (target / name).read_text(encoding="utf-8") == "mine"


def test_a_failure_during_publishing_keeps_the_older_tpm(run, tmp_path, monkeypatch):
    target = publish_to_folder(run / "best", tmp_path / "published")
    before = {p.name: p.read_bytes() for p in target.iterdir()}

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(push, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        publish_to_folder(run / "last", target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["published"]


def test_damaged_weights_are_not_published(run, tmp_path):
    shutil.copytree(run / "best", tmp_path / "tpm")
    weights = tmp_path / "tpm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        publish_to_folder(tmp_path / "tpm", tmp_path / "published")
    assert not (tmp_path / "published").exists()


class Hub:
    """A fake HfApi that records its calls."""

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def create_repo(self, repo_id, private, exist_ok):
        if self.error:
            raise self.error
        self.asked.append((repo_id, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.asked.append({p.name: p.read_bytes() for p in folder_path.iterdir()})
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/abc",
            commit_message=commit_message,
            commit_description="",
            oid="abc",
        )


def test_the_hub_gets_the_same_files(run, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert (
        push_to_hub(run / "best", "me/my-tpm", private=True, draw_curves=training_curves)
        == "https://huggingface.co/me/my-tpm/commit/abc"
    )
    made, files = hub.asked
    assert made == ("me/my-tpm", True, True)
    assert {"model.safetensors", "config.json", "README.md", "sha256.json"} < set(files)
    assert files["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    assert b'attach(pipe, "me/my-tpm")' in files["README.md"]
    assert b"# my-tpm" in files["README.md"]


def test_a_refusal_of_the_hub_is_one_line(run, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(PermissionError("401\nno token")))
    with pytest.raises(CheckpointError, match=r"hub refused to write 'me/t' \(PermissionError: 401\).*hf auth login"):
        push_to_hub(run / "best", "me/t")
    with pytest.raises(CheckpointError, match="must be owner/name"):
        push_to_hub(run / "best", "runs/best/too/deep")
