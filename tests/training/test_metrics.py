"""metrics.jsonl and docs/metrics.md have the same fields, and every value is plain JSON."""

import json
import math
import re
from pathlib import Path

import pytest

from tests.support.gaussian_problem import make_small_problem
from tpdm.core.io import read_metrics
from tpdm.training.loop import train_loop
from tpdm.training.monitoring.logger import MetricsLog
from tpdm.training.monitoring.metrics import step_statistics

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    train_loop(*make_small_problem(folder), folder)
    return read_metrics(folder / "metrics.jsonl")


def documented() -> tuple[set[str], ...]:
    """Fields in the tables of both kinds, of train rows, of composite rewards, of gammas and of held-out judges."""
    sections = DOCUMENT.read_text(encoding="utf-8").split("\n## ")
    titles = (
        "In both kinds of rows",
        "In train rows only",
        "With a composite reward",
        "With a range of gammas",
        "With held-out judges",
    )
    bodies = [next(s for s in sections if s.startswith(title + "\n")) for title in titles]
    both, train, composite, gammas, judged = (set(re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)) for body in bodies)
    return both, train, composite, gammas, judged


def test_every_field_is_in_the_document_and_the_reverse(rows):
    both, train, composite, gammas, judged = documented()
    # test_composite.py, test_gamma_conditioned.py and test_trackers.py check their content.
    assert (composite, gammas, judged) == ({"parts"}, {"gamma_points"}, {"judges"})
    assert len(both) > 5
    for row in rows:
        assert set(row) == (both | train if row["kind"] == "train" else both)


def test_the_document_names_only_keys_that_recipes_have():
    from tpdm.config.loader import _KEYS

    named = set(re.findall(r"`((?:rl|reward|optimizer|sampling|validation)\.\w+)", DOCUMENT.read_text()))
    assert len(named) > 5
    assert named <= set(_KEYS)


def test_values_are_finite_numbers(rows):
    for row in rows:
        numbers = [v for v in row.values() if isinstance(v, int | float)]
        assert len(numbers) >= len(row) - 2  # all but kind and histogram
        assert all(math.isfinite(v) for v in numbers)


def test_one_image_gives_finite_statistics():
    assert step_statistics([3])["steps_sd"] == 0
    assert step_statistics([3, 12, 3])["steps_histogram"] == {"3": 2, "12": 1}


def test_rows_after_the_checkpoint_and_incomplete_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"update": n}) + "\n" for n in (0, 1, 2, 3)) + '{"update": 4')
    MetricsLog(path, keep_up_to=2).write({"update": 3, "again": True})
    assert read_metrics(path) == [{"update": 0}, {"update": 1}, {"update": 2}, {"update": 3, "again": True}]
    MetricsLog(path, keep_up_to=0)
    assert read_metrics(path) == []
