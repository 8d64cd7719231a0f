"""A small soak test with the real engine, which contains its own assertions, and the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import run_python

ROOT = Path(__file__).parents[2]
MEMORY = "memory flat"  # a run of seconds is all warm-up


@pytest.mark.slow
def test_a_small_soak():
    command = ["-m", "benchmarks.reliability", "soak", "--requests", "24", "--bad", "60", "--print", "--seed", "1"]
    run = run_python(command, timeout=600)
    assert run.stdout, run.stderr
    result = json.loads(run.stdout)
    assert {name: kept for name, kept in result["promises"].items() if name != MEMORY and not kept} == {}, run.stdout
    assert result["requests"]["sent"] == 24
    assert 50 < result["refused"] <= sum(seen["sent"] for seen in result["bad_bodies"].values())


def test_the_committed_soak_has_full_size_and_passed():
    result = json.loads((ROOT / "docs" / "results" / "serving-soak.json").read_text(encoding="utf-8"))
    assert all(result["promises"].values())
    assert result["requests"]["sent"] >= 2000
    assert result["refused"] >= 5000
