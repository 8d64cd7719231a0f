"""Plots can be drawn from all data that occur. Their appearance was checked by hand."""

import base64
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib._pylab_helpers import Gcf

from tests.evaluation.folder import IMAGES, POLICIES, metrics, row
from tpdm.evaluation.report import plots
from tpdm.evaluation.report.curves import _curve, training_curves
from tpdm.evaluation.report.plots import BINS, length_bins, length_relation, steps_by_length

PREFIX = "data:image/svg+xml;base64,"
TPDM = [row("tpdm", i) for i in range(IMAGES)]


def svg(uri):
    assert uri.startswith(PREFIX)
    return ET.fromstring(base64.b64decode(uri.removeprefix(PREFIX)))


def everything(rows):
    rows_of = {name: [row(name, i) for i in range(len(rows))] for name in POLICIES} | {"tpdm": rows}
    return [
        plots.quality_against_steps(rows_of, "score", "score"),
        plots.steps_histogram(rows),
        plots.schedules(rows),
        plots.steps_by_objects(rows),
        steps_by_length(rows),
        plots.steps_against_difficulty([[i % 4, r["steps"]] for i, r in enumerate(rows)]),
    ]


@pytest.mark.parametrize("rows", [TPDM, TPDM[:2], TPDM[:1], [TPDM[0]] * 3], ids=["many", "two", "one", "equal"])
def test_every_plot_is_an_svg(rows):
    assert [svg(uri).tag.rsplit("}")[-1] for uri in everything(rows)] == ["svg"] * 6


def test_same_data_same_bytes():
    assert everything(TPDM) == everything(TPDM)


def test_png():
    uri = plots.steps_histogram(TPDM, file_format="png")
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


def test_policies_of_any_name_and_number():
    names = [f"control {i}" for i in range(9)]
    svg(plots.quality_against_steps(dict.fromkeys(names, TPDM), "score", "score"))


def test_continuous_difficulty():
    svg(plots.steps_against_difficulty([[0.1 * i, i] for i in range(40)]))


def test_training_curves_of_the_available_keys():
    assert len(training_curves(metrics())) == 5
    assert training_curves([]) == []
    captions = [caption for caption, _ in training_curves([m for m in metrics() if m["kind"] == "validation"])]
    assert len(captions) == 3
    assert captions[0].startswith("Validation objective")
    broken = [{**m, "entropy": float("nan")} for m in metrics()]
    assert len(training_curves(broken)) == 4


def test_global_state_of_matplotlib_is_unchanged():
    before = dict(matplotlib.rcParams)
    plots.steps_histogram(TPDM)
    assert dict(matplotlib.rcParams) == before
    assert Gcf.get_all_fig_managers() == []


@given(st.lists(st.integers(1, 80), min_size=1, max_size=60))
def test_every_length_of_a_prompt_is_in_one_bin_and_no_bin_is_empty(words):
    bins = length_bins(np.asarray(words))
    assert 1 <= len(bins) <= BINS
    assert all(sum(low <= n <= high for low, high in bins) == 1 for n in words)
    assert all(any(low <= n <= high for n in words) for low, high in bins)


def test_the_caption_reports_that_longer_prompts_get_more_steps():
    rows = [{"prompt": "word " * n, "steps": 2 * n} for n in range(1, 20)]
    assert length_relation(rows).startswith("Rank correlation of steps and words 1.00 [")
    assert "is undefined" in length_relation([{**row_, "prompt": "one"} for row_ in rows])


@pytest.mark.parametrize(("kept", "shown"), [(4, True), (2, False), (None, False)])
def test_the_star_marks_the_validation_of_the_saved_tpm(kept, shown):
    rows = [{"kind": "validation", "update": u, "objective_mean": o} for u, o in ((0, 0.1), (3, 0.9), (4, 0.8))]
    starred = []

    class Axes:
        def plot(self, x, y, look, **options):
            if look == "*":
                starred.append((x, y))

        def legend(self):
            pass

    _curve("objective_mean", [("validation", rows, "black")], kept)(Axes())
    assert starred == ([(4, 0.8)] if shown else [])


def test_copies_of_an_image_do_not_narrow_the_interval():
    generator = np.random.default_rng(0)
    steps, words = generator.integers(2, 20, 48), generator.integers(1, 9, 48)
    rows = [
        {"prompt": f"{i} " + "word " * w, "steps": int(s)} for i, (s, w) in enumerate(zip(steps, words, strict=True))
    ]
    told = [length_relation([row_ for row_ in rows for _ in range(n)]) for n in (1, 4)]
    low, high = (np.asarray([float(x) for x in t.split("[")[1].strip("].").split(",")]) for t in told)
    assert np.abs(low - high).max() < 0.06  # of images on their own it would be half as wide
