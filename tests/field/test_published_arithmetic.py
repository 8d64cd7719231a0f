"""The arithmetic of the published TPM, as the release's own code computed it.

A converted checkpoint once took the halves of the norm's linear layer for scale and shift, where they are shift and
scale, and added 1e-5 instead of 1e-6 to the variance: alpha and beta were off by up to 77 %, and the tests agreed
because their reference shared the mistake. So the reference here is a file of numbers that the release's code gave,
where it is at hand, and otherwise arithmetic on paper.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.support.release import make_checkpoint, released_ratio
from tpdm.core.errors import CheckpointError
from tpdm.core.types import Features
from tpdm.policies.conversion import PREFIXES, convert
from tpdm.policies.pretrained import from_pretrained

GOLDEN = Path(
    os.environ.get("TPDM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden" / "published_tpm.safetensors")
)
golden = pytest.mark.skipif(not GOLDEN.is_file(), reason=f"{GOLDEN.name} is not here; its folder is TPDM_GOLDEN")


def guided(rows: Tensor, w: float) -> Tensor:
    """u + w (c - u) of rows [u, c]."""
    u, c = rows.chunk(2)
    return u + w * (c - u)


def to_map(tokens_BND: Tensor, side: int) -> Tensor:
    """Raster tokens in their true layout."""
    return tokens_BND.transpose(1, 2).unflatten(2, (side, side))


@golden
def test_alpha_and_beta_equal_those_of_the_release(tmp_path: Path) -> None:
    with safe_open(str(GOLDEN), framework="pt") as file:
        assert file.metadata()["rows"] == "unconditional rows first, then conditional"
        w = float(file.metadata()["guidance_scale"])
        io = {name.removeprefix("io."): file.get_tensor(name) for name in file.keys() if name.startswith("io.")}  # noqa: SIM118
    policy, config = from_pretrained(convert(GOLDEN, tmp_path / "tpm", guidance_scale=w))
    assert (config.shape.features, config.token_grid) == ("guided", (64, 64))
    features = Features(to_map(guided(io["first"], w), 64), to_map(guided(io["last"], w), 64), guided(io["temb"], w))
    B = len(io["alpha"])
    t_B = torch.ones(B)
    with torch.no_grad():
        a_B, b_B = policy(policy.observe(features, t_B, torch.zeros(B, dtype=torch.int64), torch.arange(B)))
    assert torch.allclose(a_B.exp() + 1, io["alpha"], rtol=1e-5, atol=0)
    assert torch.allclose(b_B.exp() + 1, io["beta"], rtol=1e-5, atol=0)


@golden
def test_a_truncated_file_raises_and_writes_nothing(tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(GOLDEN.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is cut short or damaged") as caught:
        convert(short, tmp_path / "tpm")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [short]


def test_shift_comes_first_and_the_variance_gets_a_millionth(tmp_path: Path) -> None:
    """By hand: the map is constant over places, so that every layer is a short sum."""
    values, shift, scale = (3e-3, 1e-3), (0.5, -0.25), (1.0, 3.0)  # two channels; their variance is 1e-6
    eye = torch.eye(2)
    middle = torch.zeros(2, 2, 3, 3)
    middle[:, :, 1, 1] = eye
    parts = {
        "conv1.weight": torch.zeros(2, 4, 3, 3),
        "conv1.bias": torch.tensor(values),
        "norm1.norm.weight": torch.ones(2),
        "norm1.norm.bias": torch.zeros(2),
        "norm1.linear.weight": torch.zeros(4, 2),
        "norm1.linear.bias": torch.tensor([*shift, *scale]),
        "conv2.weight": middle,
        "conv2.bias": torch.zeros(2),
        "fc1.weight": eye.clone(),
        "fc1.bias": torch.zeros(2),
        "fc2.weight": eye.clone(),
        "fc2.bias": torch.zeros(2),
    }
    path = tmp_path / "release.safetensors"
    save_file({PREFIXES[0] + name: tensor for name, tensor in parts.items()}, path)
    policy, _ = from_pretrained(convert(path, tmp_path / "tpm", size=32))
    features = Features(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.zeros(1, 2))
    with torch.no_grad():
        raw = policy(policy.observe(features, torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1)))

    def silu(x: float) -> float:
        return x / (1 + math.exp(-x))

    mean = sum(values) / 2
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2 + 1e-6)
    for a, v, up, by in zip(raw, values, shift, scale, strict=True):
        assert float(a) == pytest.approx(silu(silu((v - mean) / deviation * (1 + by) + up)), rel=1e-5)


@golden
def test_the_reference_of_the_other_tests_agrees_too() -> None:
    """``released_ratio``, which whole schedules are compared with."""
    with safe_open(str(GOLDEN), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts = {k.removeprefix(PREFIXES[0]): v for k, v in tensors.items() if k.startswith(PREFIXES[0])}
    ratio_B = released_ratio(parts, *(guided(tensors[f"io.{name}"], 7.0) for name in ("first", "last", "temb")))
    mode_B = (tensors["io.alpha"] - 1) / (tensors["io.alpha"] + tensors["io.beta"] - 2)
    assert torch.allclose(ratio_B, mode_B, rtol=1e-5, atol=0)
    assert make_checkpoint(8, 8).keys() > {PREFIXES[0] + name for name in parts}
