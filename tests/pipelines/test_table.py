"""The table of docs/pipelines.md lists exactly what the tests cover."""

from pathlib import Path

import pytest

from tests.pipelines import test_families
from tests.support.families import FAMILIES, tiny_pipe
from tpdm.pipelines.registry import DENOISERS, find_denoiser, find_entry

DOCUMENT = Path(__file__).parents[2] / "docs" / "pipelines.md"
IN_ONE_BATCH = test_families.test_three_schedules_in_one_batch_equal_three_single_runs
BEHIND = {
    "fixed list = stock": [
        test_families.test_a_fixed_schedule_equals_the_stock_scheduler,
        test_families.test_a_list_of_timesteps_equals_the_stock_ddim,
    ],
    "per image": [IN_ONE_BATCH],
    "early end": [IN_ONE_BATCH],
    "training": [test_families.test_one_training_update],
}


def table():
    """The first table: heading -> cell, of every row."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    end = next(i for i, row in enumerate(cells) if i > 1 and len(row) != len(cells[0]))
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:end]]


def covered(test):
    """Families that a test is parametrised over."""
    return {name for mark in test.pytestmark if mark.args[0] == "name" for name in mark.args[1]}


def test_every_family_and_every_entry_is_listed():
    rows = table()
    assert {row["denoiser"] for row in rows} == set(DENOISERS)
    assert {row["family"] for row in rows} == {name.removesuffix(", v-prediction") for name in FAMILIES}


@pytest.mark.parametrize("row", table(), ids=lambda row: row["family"])
def test_every_check_mark_has_a_test(row):
    for column, tests in BEHIND.items():
        families = set().union(*(covered(test) for test in tests))
        assert row[column] == ("✓" if row["family"] in families else "")


@pytest.mark.parametrize("row", table(), ids=lambda row: row["family"])
def test_classes_and_path_match_the_pipeline(row):
    pipe = tiny_pipe(row["family"])
    denoiser = find_denoiser(pipe)
    assert (type(pipe).__name__, type(denoiser).__name__) == (row["pipeline"], row["denoiser"])
    assert find_entry(denoiser).path == row["path"]
