"""TPMs written before the norm's halves changed places: read to the same bits, and never half understood.

Version 1 of the format gave the scale before the shift and added 1e-5 to the variance. What was trained so is read as
it was; what was converted from the release so is wrong and is refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.test_artifact import FOLDED, POOLED, config_of
from tpdm.core.errors import CheckpointError
from tpdm.core.io import load_tensors, save_tensors
from tpdm.policies.hub.inspect import inspect_tpm
from tpdm.policies.pretrained import from_pretrained, save_pretrained
from tpdm.policies.pretrained_config import FORMAT_VERSION
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig


def with_first_names(raw: dict) -> None:
    """Gives a config.json the names of versions 1 and 2."""
    shape = raw["shape"]
    raw["dial"] = raw.pop("gamma_steps")
    shape["maps"], shape["change"] = shape.pop("feature_maps"), shape.pop("velocity_change")
    shape["start_times"], shape["fast_times"] = shape.pop("init_times"), shape.pop("init_times_low_gamma")
    shape["layout"] = {"pooled": "pooled", "release": "folded"}[shape["layout"]]


def first_format(folder: Path, shape: TPMConfig) -> dict[str, torch.Tensor]:
    """A folder as version 1 wrote it, and its tensors."""
    policy = TimePredictionModule(shape, seed=4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_pretrained(policy, config_of(shape), folder)
    raw = json.loads((folder / "config.json").read_text())
    assert raw.pop("format_version") == FORMAT_VERSION == 3
    del raw["shape"]["norm_eps"]
    with_first_names(raw)
    (folder / "config.json").write_text(json.dumps(raw | {"format_version": 1}))
    return load_tensors(folder / "model.safetensors")[0]


@pytest.mark.parametrize("shape", [POOLED, FOLDED])
def test_the_norm_gives_the_same_bits_as_before(tmp_path: Path, shape: TPMConfig) -> None:
    tensors = first_format(tmp_path / "tpm", shape)
    g = torch.Generator().manual_seed(2)
    C = shape.channels
    x_BCHW = torch.randn(3, C, 4, 6, generator=g)
    condition_BE = torch.randn(3, tensors["norm1.linear.weight"].shape[1], generator=g)
    scale_BC, shift_BC = F.linear(condition_BE, tensors["norm1.linear.weight"], tensors["norm1.linear.bias"]).chunk(
        2, dim=-1
    )
    normed_BCHW = F.group_norm(x_BCHW, 1, tensors["norm1.norm.weight"], tensors["norm1.norm.bias"], eps=1e-5)
    before_BCHW = normed_BCHW * (1 + scale_BC[..., None, None]) + shift_BC[..., None, None]
    policy, config = from_pretrained(tmp_path / "tpm")
    assert config.shape == replace(shape, norm_eps=1e-5)
    with torch.no_grad():
        assert torch.equal(policy.norm1(x_BCHW, condition_BE), before_BCHW)


def test_saved_again_it_is_of_the_newest_format_and_the_same(tmp_path: Path) -> None:
    first_format(tmp_path / "old", POOLED)
    policy, config = from_pretrained(tmp_path / "old")
    again, newer = from_pretrained(save_pretrained(policy, config, tmp_path / "new"))
    assert newer == replace(config, format_version=3)
    assert all(torch.equal(v, policy.state_dict()[k]) for k, v in again.state_dict().items())
    assert inspect_tpm(tmp_path / "old").problems == ()


def test_damaged_weights_raise_as_before(tmp_path: Path) -> None:
    tensors = first_format(tmp_path / "tpm", POOLED)
    for value, words in ((torch.tensor(1.0), "'norm1.linear.bias' in .* is torch.float32"), (None, "has no tensor")):
        changed = {k: v for k, v in tensors.items() if k != "norm1.linear.bias"}
        save_tensors(
            tmp_path / "tpm" / "model.safetensors", changed | ({} if value is None else {"norm1.linear.bias": value})
        )
        with pytest.raises(CheckpointError, match=words):
            from_pretrained(tmp_path / "tpm")


def test_a_checkpoint_converted_by_an_earlier_version_raises(tmp_path: Path) -> None:
    first_format(tmp_path / "tpm", FOLDED)
    path = tmp_path / "tpm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained": {"converted_from": "sd3.safetensors"}}))
    with pytest.raises(CheckpointError, match="Run tpdm convert again") as caught:
        from_pretrained(tmp_path / "tpm")
    assert "\n" not in str(caught.value)


def test_the_second_format_has_other_names_for_the_same(tmp_path: Path) -> None:
    shape = replace(POOLED, velocity_change=True, init_times=(1.0, 0.5, 0.0), gamma_range=(0.9, 0.99))
    config = config_of(shape, gamma_steps=((0.9, 3.0), (0.99, 9.0)), gamma=0.95)
    save_pretrained(TimePredictionModule(shape, seed=4), config, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    with_first_names(raw)
    assert {"maps", "change", "start_times", "fast_times"} <= raw["shape"].keys()
    (tmp_path / "config.json").write_text(json.dumps(raw | {"format_version": 2}))
    assert from_pretrained(tmp_path)[1] == replace(config, format_version=2)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="dial"):
        from_pretrained(tmp_path)
