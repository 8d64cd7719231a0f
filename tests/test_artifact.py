"""A TPM folder: a saved TPM decides the same bits after loading, and damaged folders raise errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpdm.core.errors import CheckpointError
from tpdm.core.io import load_tensors, save_tensors
from tpdm.core.types import Features
from tpdm.policies import pretrained as artifact
from tpdm.policies.pretrained import (
    PretrainedConfig,
    check_backbone,
    from_pretrained,
    load_policy,
    parse_config,
    save_pretrained,
)
from tpdm.policies.pretrained_config import OPTIONAL
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

POOLED = TPMConfig(6, 5, channels=8, grid=4)
FOLDED = TPMConfig(6, 5, channels=8, layout="release", token_grid=(4, 6))


def config_of(shape: TPMConfig = POOLED, **change: Any) -> PretrainedConfig:
    config = PretrainedConfig(
        shape=shape,
        backbone_class="SD3Transformer2DModel",
        backbone_name="org/tiny-sd3",
        features="tokens before the first and after the last block, conditional rows",
        guidance_scale=7.0,
        gamma=0.97,
        reward="hps",
        reward_form="paper",
        reward_offset=3.1,
        solver="euler",
        max_steps=28,
        stop_below=0.01,
        mean_steps=9.5,
        call_defaults={"height": 512, "negative_prompt": None},
        trained={"updates": 200, "seeds": [1, 2]},
    )
    return dataclasses.replace(config, **change)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(TimePredictionModule(POOLED, seed=4), config_of(), tmp_path / "tpm")


def edit(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def refused(folder: str | Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("shape", [POOLED, FOLDED])
def test_a_saved_and_loaded_tpm_decides_the_same_bits(tmp_path: Path, shape: TPMConfig) -> None:
    policy = TimePredictionModule(shape, seed=4)
    config = config_of(shape)
    save_pretrained(policy, config, tmp_path / "a" / "tpm")
    loaded, loaded_config = from_pretrained(tmp_path / "a" / "tpm")
    assert loaded_config == config
    assert loaded.artifact == config
    x = torch.randn(3, 6, 4, 6)
    features, t_B, index_B = Features(x, x.flip(2), torch.randn(3, 5)), torch.rand(3), torch.arange(3)
    for seeds in (None, [1, 2, 3]):
        one, two = (p.propose(p.observe(features, t_B, index_B, index_B), seeds) for p in (policy, loaded))
        assert torch.equal(one.action_B, two.action_B)
        assert torch.equal(one.logp_B, two.logp_B)
        assert torch.equal(one.t_next_B, two.t_next_B)


def test_a_loaded_policy_has_its_config(folder: Path) -> None:
    assert load_policy(str(folder)).artifact == config_of()
    assert config_of(FOLDED).token_grid == (4, 6)
    assert not load_policy(folder).training


def test_a_folder_has_two_files_and_no_temporary_files_remain(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert [p.name for p in folder.parent.iterdir()] == ["tpm"]


def test_saving_again_replaces_both_and_keeps_other_files(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    other = TimePredictionModule(POOLED, seed=9)
    save_pretrained(other, config_of(gamma=0.85), folder)
    loaded, config = from_pretrained(folder)
    assert config.gamma == 0.85
    assert torch.equal(loaded.conv1.weight, other.conv1.weight)
    assert (folder / "README.md").read_text() == "mine"
    assert [p.name for p in folder.parent.iterdir()] == ["tpm"]


@pytest.mark.parametrize("name", ["save_tensors", "write_json"])
def test_a_failure_while_saving_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(artifact, name, fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(TimePredictionModule(POOLED), config_of(gamma=0.5), folder)
    assert from_pretrained(folder)[1].gamma == 0.97
    assert [p.name for p in folder.parent.iterdir()] == ["tpm"]


def test_a_failing_swap_restores_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        save_pretrained(TimePredictionModule(POOLED), config_of(gamma=0.5), folder)
    assert from_pretrained(folder)[1].gamma == 0.97
    assert [p.name for p in folder.parent.iterdir()] == ["tpm"]


def test_saving_raises_for_what_could_not_be_loaded(tmp_path: Path) -> None:
    policy, target = TimePredictionModule(POOLED), tmp_path / "tpm"
    with pytest.raises(CheckpointError, match="not the shape of the policy"):
        save_pretrained(policy, config_of(FOLDED), target)
    with pytest.raises(CheckpointError, match="JSON does not support"):
        save_pretrained(policy, config_of(trained={"x": torch.ones(1)}), target)
    with pytest.raises(CheckpointError, match="JSON does not support"):
        save_pretrained(policy, config_of(mean_steps=float("nan")), target)
    with pytest.raises(CheckpointError, match="reward_form"):
        save_pretrained(policy, config_of(reward_form="mine"), target)
    assert not target.exists()
    target.write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        save_pretrained(policy, config_of(), target)


@settings(deadline=None)
@given(
    gamma=st.floats(0, 1),
    steps=st.none() | st.floats(1, 100),
    defaults=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans()),
)
def test_every_config_is_equal_after_json(gamma: float, steps: float | None, defaults: dict[str, Any]) -> None:
    config = config_of(FOLDED, gamma=gamma, mean_steps=steps, call_defaults=defaults)
    assert parse_config(json.dumps(dataclasses.asdict(config))) == config


@pytest.mark.parametrize("key", sorted({f.name for f in dataclasses.fields(PretrainedConfig)} - OPTIONAL))
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    edit(folder, lambda raw: raw.pop(key))
    refused(folder, f"has no key '{key}'")


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(TPMConfig)])
def test_a_missing_key_of_the_shape_is_named(folder: Path, key: str) -> None:
    edit(folder, lambda raw: raw["shape"].pop(key))
    refused(folder, f"shape of .* has no key '{key}'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(gama=1), "has unknown key 'gama'"),
        (lambda raw: raw["shape"].update(depth=1), "shape of .* has unknown key 'depth'"),
        (lambda raw: raw.update(gamma="0.9"), "gamma in .* is '0.9'"),
        (lambda raw: raw.update(max_steps=2.5), "max_steps in .* is 2.5"),
        (lambda raw: raw.update(reward_form="mine"), "reward_form in .* is 'mine'"),
        (lambda raw: raw.update(shape=3), "shape of .* is of type int"),
        (lambda raw: raw["shape"].update(grid=0), "grid is 0"),
        (lambda raw: raw["shape"].update(layout="flat"), "shape.layout in .* is 'flat'"),
        (lambda raw: raw.update(format_version=4), "format_version in .* is 4"),
        (lambda raw: raw.update(gamma=float("nan")), "gamma in .* is nan"),
    ],
)
def test_a_wrong_config_raises(folder: Path, change: Any, message: str) -> None:
    edit(folder, change)
    refused(folder, message)


@pytest.mark.parametrize(("text", "message"), [("{", "no JSON"), ("[1]", "is of type list"), ("3", "is of type int")])
def test_a_config_that_is_no_object_raises(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, message)


def test_a_config_that_is_no_text_raises(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "cannot be read")


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_tensors(folder / "model.safetensors")[0]
    change(tensors)
    save_tensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("fc1.bias"), "has no tensor 'fc1.bias'"),
        (lambda w: w.update(extra=torch.ones(1)), "has unknown tensor 'extra'"),
        (lambda w: w.update({"fc1.bias": torch.ones(9)}), r"'fc1.bias' in .* is torch.float32 \(9,\)"),
        (lambda w: w.update({"fc1.bias": torch.ones(8).half()}), "'fc1.bias' in .* is torch.float16"),
        (lambda w: w["fc1.bias"].fill_(float("nan")), "'fc1.bias' in .* contains NaN or infinity"),
    ],
)
def test_wrong_weights_raise(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("kept", [0, 1, 7, 100, -1])
def test_truncated_weights_raise(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, r"model\.safetensors is (empty|cut short or damaged)")


def test_a_git_lfs_pointer_raises(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "is a git-lfs pointer and not the file itself")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_loaded(folder: Path, zipped: bool) -> None:
    weights = TimePredictionModule(POOLED).state_dict()
    torch.save(weights, folder / "model.safetensors", _use_new_zipfile_serialization=zipped)
    refused(folder, r"model\.safetensors is a pickle, which is never loaded")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"has no model\.safetensors, only pytorch_model\.bin")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize("name", ["nothing", "./runs/best", "a/b/c", "/no/where", Path("org/name")])
def test_a_path_that_is_no_folder_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | Path) -> None:
    monkeypatch.chdir(tmp_path)
    refused(name, "There is no folder .* A TPM is a folder or a hub id")


def test_a_hub_id_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert from_pretrained("org/tpm-sd3.5", revision="v1")[1] == config_of()
    assert asked == [("org/tpm-sd3.5", "v1", ("model.safetensors", "config.json"))]


def test_a_failing_hub_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise RuntimeError("offline\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    refused("org/name", r"cannot be downloaded from the hub \(RuntimeError\)")


@pytest.mark.parametrize("got", [("Flux", 6, 5), ("SD3Transformer2DModel", 7, 5), ("SD3Transformer2DModel", 6, 4)])
def test_another_backbone_raises(got: tuple[str, int, int]) -> None:
    check_backbone(config_of(), "SD3Transformer2DModel", 6, 5)
    with pytest.raises(CheckpointError, match="must be SD3Transformer2DModel of width 6") as caught:
        check_backbone(config_of(), *got)
    assert "\n" not in str(caught.value)


def test_a_backbone_with_other_facts_raises(folder: Path) -> None:
    """Only facts in the config are compared. Configs of older versions have none."""
    assert "backbone_facts" not in json.loads((folder / "config.json").read_text())
    seen = ("SD3Transformer2DModel", 6, 5)
    check_backbone(load_policy(folder).artifact or config_of(), *seen, {"depth": 3})
    save_pretrained(TimePredictionModule(POOLED), config_of(backbone_facts={"depth": 2, "heads": [1, 2]}), folder)
    config = from_pretrained(folder)[1]
    check_backbone(config, *seen, {"heads": [1, 2], "depth": 2, "more": 1})
    with pytest.raises(CheckpointError, match=r"has depth 3\. It must be 2\. Load org/tiny-sd3, or a TPM") as caught:
        check_backbone(config, *seen, {"heads": [1, 2], "depth": 3})
    assert "\n" not in str(caught.value)
