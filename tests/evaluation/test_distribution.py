"""Distances between sets of images equal known values."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tpdm.config.recipe import BackboneConfig, EvaluationConfig, RewardConfig
from tpdm.core.errors import ConfigError
from tpdm.evaluation import evaluate as run
from tpdm.evaluation.distribution import cmmd, distances, diversity, folder_features, load_extractor


def normal(count: int, mean: float = 0.0, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + mean


def test_the_distance_of_a_set_to_itself_is_zero():
    found = distances(normal(400), normal(400))
    assert found["fid"] == pytest.approx(0, abs=1e-5)
    assert found["cmmd"] == pytest.approx(0, abs=1e-9)


def test_fid_of_a_shifted_normal_is_the_squared_shift():
    # |mean difference|^2 = 6 * .5^2, and equal covariances add nothing.
    assert distances(normal(4_000), normal(4_000, 0.5, seed=1))["fid"] == pytest.approx(1.5, rel=0.1)


def test_all_distances_increase_together():
    near, far = (distances(normal(600), normal(600, mean, seed=1)) for mean in (0.2, 1.0))
    for key in ("fid", "kid", "cmmd"):
        assert near[key] < far[key]


def test_few_images_are_refused_and_fid_needs_more():
    with pytest.raises(ConfigError, match="There are 99 images"):
        distances(normal(400), normal(99))
    assert distances(normal(120, width=150), normal(120, width=150, seed=1)).keys() == {"kid", "cmmd"}
    with pytest.raises(ConfigError, match="widths 6 and 5"):
        distances(normal(400), normal(400, width=5))


def test_distances_are_deterministic():
    before = torch.random.get_rng_state()
    assert distances(normal(300), normal(300, 1.0)) == distances(normal(300), normal(300, 1.0))
    assert (torch.random.get_rng_state() == before).all()


def test_cmmd_is_the_squared_distance_of_mean_embeddings():
    x, y = torch.eye(4)[:2].repeat(60, 1), torch.eye(4)[2:].repeat(60, 1)
    # Unit vectors are sqrt 2 apart or equal: k = exp(-1/100) or 1.
    k = float(np.exp(-2 / 200))
    assert cmmd(x, y) == pytest.approx(1000 * (2 * (1 + k) / 2 - 2 * k))


def test_diversity_is_within_prompts():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert diversity(features, ["a", "a", "b", "b"]) == pytest.approx((0 + 2) / 2)
    assert diversity(features, ["a", "b", "c", "d"]) is None


def test_features_of_a_folder(tmp_path, monkeypatch):
    for i, side in enumerate((4, 4, 6)):
        Image.fromarray(np.full((side, side, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "mine.py").write_text(
        "def means(images):\n    return images.mean((2, 3))\ndef wrong(images):\n    return images\n"
    )
    monkeypatch.chdir(tmp_path)
    found = folder_features(tmp_path, load_extractor("python:mine:means"), batch=2)
    assert (found * 255).round().tolist() == [[0.0] * 3, [50.0] * 3, [100.0] * 3]
    with pytest.raises(ConfigError, match=r"must be \(images, features\)"):
        folder_features(tmp_path, load_extractor("python:mine:wrong"), batch=2)
    with pytest.raises(ConfigError, match="contains no images"):
        folder_features(tmp_path / "none", load_extractor("python:mine:means"), batch=2)


def test_a_folder_is_read_in_batches_in_numeric_order(tmp_path):
    for name, value in (("10000", 50), ("9999", 40), ("0000", 0), ("0001", 10), ("0002", 20)):
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    seen = []

    def extract(images_B3HW):
        seen.append(len(images_B3HW))
        return images_B3HW.mean((2, 3))

    found = folder_features(tmp_path, extract, batch=2)
    assert (found[:, 0] * 255).round().tolist() == [0, 10, 20, 40, 50]
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("name", ["inception", "clip:", "python:mine", "python:not_there:f"])
def test_unknown_extractors_are_refused(name):
    with pytest.raises(ConfigError, match=r"evaluation\.features"):
        load_extractor(name)


def test_the_reference_policy_has_no_distance(tmp_path, monkeypatch):
    recipe = SimpleNamespace(reward=RewardConfig("tinyworld"))
    names = ["tpdm", "static-28", "best grid, equal steps"]
    for name in names[:2]:
        (tmp_path / "pictures" / name).mkdir(parents=True)
    sets = {"tpdm": normal(120, 0.3), "static-28": normal(120)}
    monkeypatch.setattr(run, "folder_features", lambda folder, *_: sets[folder.name])
    prompts = [f"p{i // 2}" for i in range(120)]
    results = [SimpleNamespace(name=n) for n in names]
    found = run._distribution(recipe, tmp_path, results, prompts, None, None)
    assert found["tpdm"]["kid"] > 0
    assert {k for k, v in found["static-28"].items() if v is not None} == {"diversity"}
    found = run._distribution(recipe, tmp_path, results, prompts, None, normal(120, 0.1, seed=3))
    assert found["static-28"]["cmmd"] > 0


def mean_colors(images_B3HW):
    return images_B3HW.mean((2, 3))


def test_too_few_images_are_refused_before_any_is_generated(tmp_path):
    recipe = SimpleNamespace(
        backbone=BackboneConfig("tinyworld", device="cpu"),
        reward=RewardConfig("tinyworld"),
        evaluation=EvaluationConfig(reference=str(tmp_path), features=f"python:{__name__}:mean_colors"),
    )
    for i in range(99):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{i}.png")
    with pytest.raises(ConfigError, match=r"There are 99 images\. .* evaluation\.reference"):
        run._load_reference_features(recipe, 100)
    Image.new("RGB", (2, 2)).save(tmp_path / "99.png")
    extract, reference_NF = run._load_reference_features(recipe, 100)
    assert torch.equal(extract(torch.ones(1, 3, 2, 2)), torch.ones(1, 3))
    assert reference_NF.shape == (100, 3)
