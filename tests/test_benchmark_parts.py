"""Searches, intervals and tables that only benchmarks use."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.demo_seeds_page import results_section
from benchmarks.quality.schedule_search import search_schedules, vary
from benchmarks.quality.two_way import two_way_bootstrap
from tpdm.evaluation.statistics import paired_bootstrap


@given(scale=st.floats(0, 1), seed=st.integers(0, 1000), n=st.integers(1, 20), start=st.floats(0.3, 1))
def test_variations_are_schedules(scale, seed, n, start):
    times = [start * (1 - i / n) for i in range(n)] + [0.0]
    varied = vary(times, scale, np.random.default_rng(seed))
    assert len(varied) == len(times)
    assert varied[0] == pytest.approx(start)
    assert varied[-1] == 0.0
    assert all(a > b for a, b in pairwise(varied))


def test_a_search_finds_what_each_image_wants():
    # Image b wants its second time at wanted[b]; for all of them together .5 is best.
    wanted = np.linspace(0.3, 0.7, 12)

    def score(schedules):
        return np.array([-((times[1] - w) ** 2) for times, w in zip(schedules, wanted, strict=True)])

    found = search_schedules(score, [1.0, 0.9, 0.0], images=12, candidates=40, rounds=2)
    assert found.start_B.mean() < found.shared_B.mean() < found.own_B.mean()
    assert found.own_B.mean() > -1e-4
    assert [times[1] for times in found.own] == pytest.approx(wanted.tolist(), abs=0.03)
    assert found.tried == 1 + 40 * 3


def test_two_way_intervals_hold_the_variance_of_runs_and_of_images():
    generator = np.random.default_rng(0)
    runs, images = generator.normal(0, 1, (5, 1)), generator.normal(0, 1, (1, 400))
    # All variance between images: as wide as the interval of one run. All of it between runs: much wider than pooled.
    same = two_way_bootstrap(np.repeat(images, 5, axis=0))
    assert np.subtract(*same[:0:-1]) == pytest.approx(np.subtract(*paired_bootstrap(images[0])[:0:-1]), rel=0.1)
    between = two_way_bootstrap(np.repeat(runs, 400, axis=1))
    assert np.subtract(*between[:0:-1]) == pytest.approx(np.subtract(*paired_bootstrap(runs[:, 0])[:0:-1]), rel=0.1)
    assert same[0] == pytest.approx(images.mean())
    for wrong in (np.zeros((1, 5)), np.zeros(5), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="got"):
            two_way_bootstrap(wrong)


def test_the_results_section_is_computed():
    def run(seed: int, reward: float) -> dict:
        row = {"steps_mean": 8.0 + seed, "steps_sd": 1.0, "reward_mean": reward, "accuracy": 0.9, "residual": 4.0}
        return {
            "rows": [{"name": "tpdm", **row}, {"name": "static-28", **row, "steps_mean": 28.0}],
            "paired": {"static-28": {"reward": [0.01, -0.01, 0.03 + seed], "accuracy": [0.0, -0.1, 0.1]}},
            "images": 512,
            "steps_vs_difficulty": {"correlation": 0.4, "low": 0.3, "high": 0.5},
            "train_seconds": 100.0,
            "total_seconds": 200.0,
            "hardware": "2 threads",
            "versions": {"torch": "2", "diffusers": "0"},
        }

    rendered = results_section([run(0, 0.5), run(2, 0.7)])
    assert "| tpdm | 9.0 ± 1.4 | 0.6000 ± 0.1414 | 0.900 |" in rendered
    assert "+0.0100 [-0.0100, +2.0300]" in rendered
    assert "512 held-out prompts; training seeds: 2 " in rendered
