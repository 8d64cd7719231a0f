"""Intervals equal closed forms and brute force. Simulations test their coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpdm.evaluation import statistics
from tpdm.evaluation.statistics import (
    paired_bootstrap,
    quantile_of_difference,
    ranks,
    samples_of,
    spearman,
)

values = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=3, max_size=20)
few = settings(max_examples=40, deadline=None)


def test_the_interval_of_a_mean_approaches_the_normal_one():
    x = np.random.default_rng(0).normal(0.3, 2.0, 2_000)
    mean, low, high = paired_bootstrap(x)
    half = 1.959964 * x.std() / math.sqrt(len(x))
    assert mean == pytest.approx(x.mean())
    assert low == pytest.approx(mean - half, abs=0.05 * half)
    assert high == pytest.approx(mean + half, abs=0.05 * half)


def test_the_interval_of_five_values_equals_that_of_all_resamples():
    x = [0.0, 1.0, 5.0, 2.3, 9.1]
    means = [np.mean(draw) for draw in itertools.product(x, repeat=5)]
    low, high = np.quantile(means, (0.025, 0.975))
    assert paired_bootstrap(x) == pytest.approx((3.48, low, high), abs=0.15)


def test_the_interval_covers_the_true_mean_in_95_percent_of_experiments():
    generator = np.random.default_rng(1)
    # Skewed, as differences of scores are.
    intervals = [paired_bootstrap(generator.exponential(1, 150), seed=i, resamples=400) for i in range(600)]
    covered = np.mean([low <= 1 <= high for _, low, high in intervals])
    assert 0.92 <= covered <= 0.98


@few
@given(values, st.integers(0, 9), st.floats(-5, 5))
def test_the_interval_shifts_and_scales_with_the_data(x, seed, shift):
    mean, low, high = paired_bootstrap(x, seed, 200)
    assert min(x) - 1e-9 <= low <= high <= max(x) + 1e-9
    assert paired_bootstrap(np.add(x, shift), seed, 200) == pytest.approx(
        (mean + shift, low + shift, high + shift), abs=1e-9
    )


def test_the_interval_depends_on_the_seed_and_not_on_the_chunk(monkeypatch):
    x = np.random.default_rng(2).normal(size=37)
    whole = paired_bootstrap(x, seed=3, resamples=999)
    assert paired_bootstrap(x, seed=3, resamples=999) == whole
    assert paired_bootstrap(x, seed=4, resamples=999) != whole
    monkeypatch.setattr(statistics, "CHUNK", 100)
    assert paired_bootstrap(x, seed=3, resamples=999) == pytest.approx(whole)


def test_pairing_narrows_the_interval():
    generator = np.random.default_rng(4)
    hard = generator.normal(0, 5, 300)
    a, b = hard + generator.normal(0.1, 0.1, 300), hard
    _, low, high = paired_bootstrap(a - b)
    assert low > 0
    assert high - low < 0.1 * (paired_bootstrap(a)[2] - paired_bootstrap(a)[1])


def test_quantile_of_difference():
    x = np.arange(101.0)
    value, low, high = quantile_of_difference(x, 0.1)
    assert value == 10
    assert 2 < low < 10 < high < 20
    assert quantile_of_difference([2.0, 2.0, 2.0], 0.5) == (2, 2, 2)
    with pytest.raises(ValueError, match="range"):
        quantile_of_difference(x, 1.5)


def test_a_quantile_equals_brute_force():
    generator = np.random.default_rng(3)
    x, odds = generator.normal(size=40), generator.uniform(0.1, 1, 40)
    for q in (0, 0.01, 0.3, 0.5, 1):
        least = min(v for v in x if odds[x <= v].sum() >= q * odds.sum() - 1e-12)
        assert quantile_of_difference(x, q, odds_B=odds, resamples=10)[0] == least


@pytest.mark.parametrize("samples", [2, 8])
def test_intervals_cover_the_true_mean_if_images_of_a_prompt_are_correlated(samples):
    generator, covered = np.random.default_rng(6), []
    for i in range(400):
        x = np.repeat(generator.normal(size=100), samples) + generator.normal(size=100 * samples)
        _, low, high = paired_bootstrap(x, seed=i, resamples=400, samples=samples)
        _, below, above = quantile_of_difference(x, 0.5, seed=i, resamples=400, samples=samples)
        covered.append((low <= 0 <= high, below <= 0 <= above))
    assert np.all(np.mean(covered, axis=0) > 0.92)
    assert np.all(np.mean(covered, axis=0) < 0.99)


def test_images_of_a_prompt_are_counted():
    assert samples_of(["a", "a", "b", "b", "c", "c"]) == 2
    assert samples_of(["a", "b", "c"]) == 1
    assert samples_of(["a", "a", "b"]) == 1


@few
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_ties_get_their_average_rank(x):
    below = [sum(b < a for b in x) for a in x]
    upto = [sum(b <= a for b in x) for a in x]
    assert ranks(x).tolist() == [(lo + 1 + hi) / 2 for lo, hi in zip(below, upto, strict=True)]


@few
@given(st.permutations(range(9)))
def test_spearman_without_ties_equals_the_closed_form(order):
    n = len(order)
    expected = 1 - 6 * sum((i - p) ** 2 for i, p in enumerate(order)) / (n * (n**2 - 1))
    found = spearman(range(n), order, resamples=50)
    assert found is not None
    rho, low, high = found
    assert rho == pytest.approx(expected)
    assert -1 <= low <= high <= 1


def test_spearman_with_ties():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    found = spearman([1, 2, 2, 3], [1, 2, 3, 4], resamples=10)
    assert found is not None
    assert found[0] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@few
@given(values, st.integers(0, 3))
def test_spearman_depends_on_ranks_only(x, seed):
    y = np.arange(len(x)) % 3
    direct = spearman(x, y, seed, 50)
    assert spearman(3 * np.asarray(x) - 7, y, seed, 50) == direct
    assert spearman(x, x, seed, 50) == (pytest.approx((1, 1, 1)) if len(set(x)) > 1 else None)


def test_the_spearman_interval_separates_a_relation_from_none():
    generator = np.random.default_rng(5)
    x = generator.normal(size=200)
    related, unrelated = spearman(x, x + generator.normal(size=200)), spearman(x, generator.normal(size=200))
    assert related is not None
    assert unrelated is not None
    assert 0 < related[1] < related[0] < related[2] < 1
    assert unrelated[1] < 0 < unrelated[2]


def test_spearman_is_none_if_undefined():
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([], []) is None


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, math.nan], [[1.0, 2.0], [3.0, 4.0]]])
def test_invalid_values_are_refused(bad):
    with pytest.raises(ValueError, match="values_B"):
        paired_bootstrap(bad)


def test_spearman_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="3 and 2"):
        spearman([1, 2, 3], [1, 2])


def test_spearman_resamples_whole_prompts():
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(2, 40))
    alone, four = spearman(x, y), spearman(np.repeat(x, 4), np.repeat(y, 4), samples=4)
    assert four == pytest.approx(alone, abs=0.02)
    _, low, high = spearman(np.repeat(x, 4), np.repeat(y, 4))
    assert high - low < 0.7 * (alone[2] - alone[1])
