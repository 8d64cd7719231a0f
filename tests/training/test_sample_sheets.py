"""Image sheets of validations: their images, labels, schedules and number."""

import json

import pytest
import torch
from PIL import Image

from tests.support.gaussian_problem import make_small_problem
from tpdm.sampling.base import SampleBatch, SampleRequest
from tpdm.training.monitoring.logger import RunLogger, first_of_each
from tpdm.training.monitoring.sample_sheets import KEPT, LABEL, contact_sheet, write_image_sheet


def test_a_sheet_contains_every_image_with_a_label():
    colors = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 16)
    sheet = contact_sheet(colors, ["3 steps", "4 steps", "5 steps"])
    assert sheet.size == (2 * 256, 2 * (128 + LABEL))
    centers = [(128, 64), (384, 64), (128, 128 + LABEL + 64)]
    assert [sheet.getpixel(place) for place in centers] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    label = sheet.crop((0, 128, 256, 128 + LABEL)).convert("L")
    assert label.getextrema()[0] < 100  # something is written there


def write(folder, update, n=2):
    times = [[1.0, 0.5, 0.0], [1.0, 0.0]][:n]
    return write_image_sheet(folder, update, torch.rand(n, 3, 8, 8), ["a", "b"][:n], [7, 8][:n], times, [0.5, 0.25][:n])


def test_schedules_are_written_as_json(tmp_path):
    path = write(tmp_path, 20)
    assert path.name == "update-000020.png"
    kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert kept["update"] == 20
    assert kept["images"][0] == {"prompt": "a", "seed": 7, "steps": 2, "score": 0.5, "times": [1.0, 0.5, 0.0]}
    assert kept["images"][1]["steps"] == 1


def test_the_first_and_the_newest_sheets_are_kept(tmp_path):
    for update in range(0, (KEPT + 5) * 10, 10):
        write(tmp_path, update, n=1)
    kept = sorted(int(p.stem.split("-")[1]) for p in tmp_path.glob("*.png"))
    assert len(kept) == KEPT == len(list(tmp_path.glob("*.json")))
    assert kept[0] == 0
    assert kept[1:] == list(range(60, (KEPT + 5) * 10, 10))


@pytest.mark.parametrize(("asked", "shown"), [(2, 2), (9, 3), (0, 0)])
def test_a_sheet_has_as_many_images_as_the_recipe_says(tmp_path, asked, shown):
    recipe, _ = make_small_problem(tmp_path, validation={"num_images_logged": asked})
    logger = RunLogger(recipe, tmp_path, 0)
    generated = SampleBatch(torch.rand(3, 3, 8, 8), [1, 1, 2], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.5, 0.0]], None)
    # Of four images the last one is another process's.
    request = SampleRequest(["a", "b", "c", "d"], [1, 2, 3, 4])
    logger.show(0, request, generated, torch.tensor([0.0, 1.0, 2.0, 3.0]))
    paths = list((tmp_path / "pictures").glob("*.png")) if shown else []
    assert (tmp_path / "pictures").exists() == bool(shown)
    if shown:
        kept = json.loads(paths[0].with_suffix(".json").read_text(encoding="utf-8"))["images"]
        assert [image["prompt"] for image in kept] == ["a", "b", "c"][:shown]
        with Image.open(paths[0]) as sheet:
            assert sheet.size[0] == 512


def test_tensors_that_are_not_images_are_skipped(tmp_path):
    recipe, _ = make_small_problem(tmp_path)
    generated = SampleBatch(torch.rand(2, 2, 2), [1, 1], [[1.0, 0.0]] * 2, None)
    RunLogger(recipe, tmp_path, 0).show(0, SampleRequest(["a"] * 2, [1, 2]), generated, torch.zeros(2))
    assert not (tmp_path / "pictures").exists()


def test_a_sheet_shows_every_gamma(tmp_path):
    recipe, _ = make_small_problem(tmp_path, validation={"num_images_logged": 4})
    generated = SampleBatch(torch.rand(6, 3, 8, 8), [1] * 6, [[1.0, 0.0]] * 6, None)
    gammas = [0.9, 0.9, 0.9, 0.99, 0.99, 0.99]
    request = SampleRequest([*"abcabc"], [1, 2, 3] * 2, gammas=gammas)
    RunLogger(recipe, tmp_path, 0).show(0, request, generated, torch.arange(6.0))
    (path,) = (tmp_path / "pictures").glob("*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))["images"]
    assert [(image["prompt"], image["gamma"], image["score"]) for image in kept] == [
        ("a", 0.9, 0.0),
        ("b", 0.9, 1.0),
        ("a", 0.99, 3.0),
        ("b", 0.99, 4.0),
    ]


@pytest.mark.parametrize(
    ("images", "count", "shown"), [(6, 9, [0, 1, 2, 3, 4, 5]), (6, 1, [0]), (4, 4, [0, 1, 3]), (0, 4, []), (6, 0, [])]
)
def test_a_sheet_shows_equally_many_images_of_each_gamma(images, count, shown):
    assert first_of_each(images, [0.9] * 3 + [0.99] * 3, count) == shown
