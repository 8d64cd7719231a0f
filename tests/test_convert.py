"""Conversion of the published checkpoint: prefixes, errors, and the same times as the release."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.support.release import make_checkpoint, released_times
from tests.support.tiny_sd3 import WIDTH, make_tiny_sd3
from tpdm.cli import app
from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.pipelines.attach import attach
from tpdm.policies.conversion import PREFIXES, convert
from tpdm.policies.pretrained import from_pretrained

D = 16


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "release.safetensors"
    save_file(make_checkpoint(D, D), path)
    return path


@pytest.fixture(scope="module")
def sd3_1024(tmp_path_factory):
    """SD3 whose images of 1024 pixels have 64 x 64 tokens, as the published ones have."""
    pipe = make_tiny_sd3(tmp_path_factory.mktemp("sd3"))
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(2,) * 4, latent_channels=4, norm_num_groups=2, shift_factor=0.0, **blocks)
    transformer = SD3Transformer2DModel(
        sample_size=128,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=D,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=64,
    ).eval()
    changed = type(pipe)(**pipe.components | {"vae": vae, "transformer": transformer})
    changed.set_progress_bar_config(disable=True)
    return changed


def test_sd3_at_1024_pixels_gets_the_times_of_the_release(sd3_1024, checkpoint, tmp_path):
    fast = attach(sd3_1024, convert(checkpoint, tmp_path / "tpm"))
    calls = [("red cat", 0), ("a", 1)]
    parts = {k.removeprefix(PREFIXES[0]): v for k, v in make_checkpoint(D, D).items()}
    for prompt, seed in calls:
        out = fast(prompt, seeds=[seed], max_sequence_length=4, output_type="latent")
        released = released_times(sd3_1024, parts, prompt, seed, w=7.0, stop_below=0.001, max_steps=35)
        assert out.times[0][-1] == 0.0
        assert out.times[0][:-1] == pytest.approx(released, rel=1e-5)
        assert out.steps == [len(released)]
        assert len(released) > 3


def test_the_schedule_depends_on_guidance(sd3_1024, checkpoint, tmp_path):
    fast = attach(sd3_1024, convert(checkpoint, tmp_path / "tpm"), max_steps=2)
    guided, hardly = (
        fast("a", seeds=[0], max_sequence_length=4, output_type="latent", guidance_scale=w).times[0] for w in (7.0, 1.5)
    )
    assert guided[1] != pytest.approx(hardly[1], rel=1e-3)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_both_prefixes_give_the_same_folder_and_the_backbone_is_left_out(prefix, tmp_path):
    path = tmp_path / "release.safetensors"
    save_file({k: v.half() for k, v in make_checkpoint(D, D, prefix).items()}, path)
    policy, config = from_pretrained(convert(path, tmp_path / "tpm", stop_below=0.01))
    assert config.shape.features == "guided"
    assert (config.stop_below, config.guidance_scale, config.token_grid) == (0.01, 7.0, (64, 64))
    expected = make_checkpoint(D, D, "")["conv1.weight"].half().float()
    assert torch.equal(policy.conv1.weight, expected)
    assert policy.conv1.weight.dtype == torch.float32


def test_the_published_shape_has_the_published_number_of_parameters(tmp_path):
    C = 128
    tensors = {
        "conv1.weight": (C, 3072, 3, 3),
        "conv1.bias": (C,),
        "norm1.norm.weight": (C,),
        "norm1.norm.bias": (C,),
        "norm1.linear.weight": (2 * C, 1536),
        "norm1.linear.bias": (2 * C,),
        "conv2.weight": (C, C, 3, 3),
        "conv2.bias": (C,),
        "fc1.weight": (C, C),
        "fc1.bias": (C,),
        "fc2.weight": (2, C),
        "fc2.bias": (2,),
    }
    path = tmp_path / "release.safetensors"
    save_file({f"time_predictor.{k}": torch.zeros(v, dtype=torch.float16) for k, v in tensors.items()}, path)
    policy, _ = from_pretrained(convert(path, tmp_path / "tpm"))
    assert sum(p.numel() for p in policy.parameters()) == 4_097_154


def damage(path, kind):
    tensors = make_checkpoint(D, D)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "pickle":
        torch.save(tensors, path)
    elif kind == "no tpm":
        save_file({"transformer.weight": torch.zeros(2)}, path)
    elif kind == "a tensor missing":
        save_file({k: v for k, v in tensors.items() if "fc2.bias" not in k}, path)
    elif kind == "one too many":
        save_file(tensors | {PREFIXES[0] + "fc3.bias": torch.zeros(2)}, path)
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "is cut short or damaged"),
        ("pickle", "is a pickle, which is never loaded"),
        ("no tpm", "the first is 'transformer.weight'. but none of a TPM"),
        ("a tensor missing", "no tensor 'fc2.bias'"),
        ("one too many", "unknown tensor 'fc3.bias'"),
        ("missing", "is no file"),
    ],
)
def test_a_bad_file_raises_and_nothing_is_written(checkpoint, tmp_path, kind, message):
    damage(checkpoint, kind)
    with pytest.raises(CheckpointError, match=message):
        convert(checkpoint, tmp_path / "tpm")
    assert not (tmp_path / "tpm").exists()


@pytest.mark.parametrize("option", [{"size": 1000}, {"size": 0}, {"stop_below": 1.0}, {"max_steps": 0}])
def test_options_that_no_call_accepts_raise_at_once(checkpoint, tmp_path, option):
    with pytest.raises(ConfigError, match=r"^(size|stop_below) is .* must be .*Try"):
        convert(checkpoint, tmp_path / "tpm", **option)
    assert not (tmp_path / "tpm").exists()


def test_only_a_folder_of_a_tpm_is_replaced(checkpoint, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}', encoding="utf-8")
    for out, words in ((other, "contains other files"), (checkpoint.parent, "contains the checkpoint")):
        before = checkpoint.read_bytes()
        with pytest.raises(ConfigError, match=words):
            convert(checkpoint, out)
        assert checkpoint.read_bytes() == before
    monkeypatch.chdir(other)
    with pytest.raises(ConfigError, match="the current folder"):
        convert(checkpoint, ".")
    assert sorted(path.name for path in other.iterdir()) == ["config.json"]
    for _ in range(2):
        convert(checkpoint, tmp_path / "tpm")


def test_the_command(checkpoint, tmp_path):
    out = tmp_path / "tpm"
    result = CliRunner().invoke(app, ["convert", str(checkpoint), "--out", str(out), "--guidance-scale", "3.5"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "config.json").read_text())["call_defaults"]["guidance_scale"] == 3.5
    refused = CliRunner().invoke(app, ["convert", str(tmp_path / "none.safetensors"), "--out", str(out)])
    assert refused.exit_code == 2
