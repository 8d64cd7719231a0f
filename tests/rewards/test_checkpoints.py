"""Published files are read without running code and copied as safetensors. Invalid ones are refused."""

import os
import pickle
import shutil

import pytest
import torch
from torch import nn

from tests.rewards.conftest import PROMPTS, blip_shape, clip_config
from tests.support.published import TINY_BLIP, TINY_CLIP
from tpdm.core.errors import RewardError
from tpdm.core.io import load_tensors, save_tensors
from tpdm.rewards.checkpoints import fill, find_file, read_checkpoint, tokenizer_place
from tpdm.rewards.hpsv2 import FILE, load_hpsv2
from tpdm.rewards.imagereward import load_imagereward
from tpdm.rewards.loading import load_reward

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.0)}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-run",)


def refusal(path):
    with pytest.raises(RewardError) as caught:
        read_checkpoint(path, "test")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("content", [WEIGHTS, {"state_dict": WEIGHTS, "epoch": 3}])
def test_a_pickle_is_copied_as_safetensors(tmp_path, content):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    first = read_checkpoint(path, "test")
    kept = load_tensors(tmp_path / "x.pt.safetensors")[0]
    for tensors in (first, kept, read_checkpoint(path, "test")):
        assert all(torch.equal(tensors[name], value) for name, value in WEIGHTS.items())
        assert len(tensors) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt", "x.pt.safetensors"]


def test_the_copy_is_used_until_the_pickle_is_newer(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(WEIGHTS, path)
    read_checkpoint(path, "test")
    kept = tmp_path / "x.pt.safetensors"
    save_tensors(kept, {"other": torch.zeros(1)})
    assert list(read_checkpoint(path, "test")) == ["other"]
    later = kept.stat().st_mtime + 10
    os.utime(path, (later, later))
    assert set(read_checkpoint(path, "test")) == {"a", "b"}


def test_a_read_only_folder_is_supported(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("read only")

    monkeypatch.setattr("tpdm.rewards.checkpoints.save_tensors", refuse)
    torch.save(WEIGHTS, tmp_path / "x.pt")
    assert set(read_checkpoint(tmp_path / "x.pt", "test")) == {"a", "b"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_weights_that_share_memory_are_all_saved(tmp_path):
    shared = torch.arange(4.0)
    torch.save({"a": shared, "b": shared[1:], "c": shared}, tmp_path / "x.pt")
    read_checkpoint(tmp_path / "x.pt", "test")
    kept = load_tensors(tmp_path / "x.pt.safetensors")[0]
    assert torch.equal(kept["b"], shared[1:])
    assert torch.equal(kept["c"], shared)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": WEIGHTS, "extra": Evil()}, tmp_path / "x.pt")
    assert "contains more than tensors and might run code" in refusal(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Evil()))
    assert "might run code" in refusal(tmp_path / "y.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt", "y.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.rand(200, 20)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "must be " in refusal(path)
    kept = save_tensors(tmp_path / "x.safetensors", {"a": torch.rand(200, 20)})
    whole = kept.read_bytes()
    kept.write_bytes(whole[: int(len(whole) * share)])
    assert "must be complete" in refusal(kept)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_git_lfs_pointer_is_reported_as_such(tmp_path, name):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a git-lfs pointer and not the file itself" in refusal(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"state_dict": [torch.zeros(1)]}, torch.zeros(2)])
def test_content_other_than_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert "must be a state dictionary" in refusal(tmp_path / "x.pt")


def test_find_file_and_tokenizer_place(tmp_path):
    with pytest.raises(RewardError, match=r"folder '.*' does not contain w\.pt\. Put the published file there"):
        find_file(str(tmp_path), "w.pt", "test")
    with pytest.raises(
        RewardError, match=r"no w\.pt at 'nobody/nothing' \(.*\)\. Give the file, a folder or a hub id"
    ) as e:
        find_file("nobody/nothing", "w.pt", "test")
    assert "\n" not in str(e.value)
    with pytest.raises(RewardError, match=r"no w\.pt at '/not/there/at/all'"):
        find_file("/not/there/at/all", "w.pt", "test")
    kept = save_tensors(tmp_path / "w.pt.safetensors", WEIGHTS)
    assert find_file(str(tmp_path), "w.pt", "test") == kept  # the pickle may be deleted after the first read
    assert find_file(str(kept), "w.pt", "test") == kept
    assert tokenizer_place(kept, "some/default") == "some/default"
    (tmp_path / "vocab.txt").touch()
    assert tokenizer_place(kept, "some/default") == str(tmp_path)


def test_weights_of_another_shape_are_refused():
    make, good = lambda: nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    assert torch.equal(fill(make, {k: v.half() for k, v in good.items()}, "test").weight, good["weight"])
    for bad, words in (
        ({**good, "bias": torch.ones(3)}, r"the shape of bias in the file is \(3,\) and in the model \(2,\)"),
        ({"weight": good["weight"]}, "the shape of bias in the file is None"),
        ({**good, "more": torch.ones(1)}, r"the shape of more in the file is \(1,\) and in the model None"),
    ):
        with pytest.raises(RewardError, match=words):
            fill(make, bad, "test")


def test_the_pickle_and_its_copy_give_the_same_scores(hps_folder, imagereward_folder, images):
    for _ in range(2):
        hps = load_hpsv2(str(hps_folder[0]), config=clip_config(TINY_CLIP, "gelu")).score(images, PROMPTS)
        blip = load_imagereward(str(imagereward_folder[0]), shape=blip_shape(TINY_BLIP)).score(images, PROMPTS)
    again = load_hpsv2(str(hps_folder[0] / f"{FILE}.safetensors"), config=clip_config(TINY_CLIP, "gelu"))
    assert torch.equal(again.score(images, PROMPTS), hps)
    assert torch.isfinite(blip).all()


def test_the_full_size_model_refuses_a_tiny_file(hps_folder):
    with pytest.raises(RewardError, match=r"HPSv2\.1.*must be equal\. Fetch the published file of this reward"):
        load_hpsv2(str(hps_folder[0]))


def test_a_missing_tokenizer_is_refused(clip_folder, tmp_path):
    """transformers 5 would make a tokenizer of two tokens, which gives all prompts the same tokens."""
    copy = shutil.copytree(clip_folder[0], tmp_path / "clip")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(
        RewardError, match=r"no tokenizer at|the tokenizer at .* has 2 tokens where its model knows"
    ) as error:
        load_reward(f"clip:{copy}")
    assert "\n" not in str(error.value)


def test_a_missing_configuration_is_refused(clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder[0], tmp_path / "copy")
    (copy / "config.json").unlink()
    with pytest.raises(RewardError, match=r"copy does not contain config\.json\. The model needs it"):
        load_reward(f"clip:{copy}")


@pytest.mark.parametrize("kind", ["clip", "aesthetic"])
def test_missing_weights_are_refused(kind, clip_folder, aesthetic_folder, tmp_path):
    """transformers would fill them at random."""
    copy = shutil.copytree((clip_folder if kind == "clip" else aesthetic_folder)[0], tmp_path / "copy")
    tensors, _ = load_tensors(copy / "model.safetensors")
    lost = "vision_model.post_layernorm.weight"
    save_tensors(copy / "model.safetensors", {k: v for k, v in tensors.items() if k != lost}, {"format": "pt"})
    with pytest.raises(RewardError, match=f"the model at .* has no weight {lost} "):
        load_reward(f"{kind}:{copy}")
