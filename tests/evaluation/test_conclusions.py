"""A claimed difference needs an interval that excludes zero."""

import math

import pytest

from tests.evaluation.folder import summary
from tpdm.core.formatting import signed_interval
from tpdm.evaluation.report.conclusions import agreement, effect, relation, verdict


def with_reference(**measures):
    changed = summary()
    changed["paired"]["static-28"] |= measures
    return verdict(changed)


@pytest.mark.parametrize(
    ("measure", "interval", "expected"),
    [
        ("reward", [0.2, 0.1, 0.3], "better"),
        ("reward", [-0.2, -0.3, -0.1], "worse"),
        ("reward", [0.1, -0.1, 0.3], "unclear"),
        ("reward", [0.1, 0.0, 0.3], "unclear"),
        ("residual", [0.2, 0.1, 0.3], "worse"),
        ("residual", [-0.2, -0.3, -0.1], "better"),
        ("accuracy", None, "unknown"),
        ("accuracy", [0.1, math.nan, 0.2], "unknown"),
    ],
)
def test_effect(measure, interval, expected):
    assert effect(measure, interval) == expected


@pytest.mark.parametrize(
    ("measure", "better", "worse", "unclear"),
    [
        ("reward", "a higher reward (", "a lower reward (", "no significant difference in reward ("),
        ("accuracy", "more of the prompt", "less of the prompt", "no significant difference in accuracy ("),
        ("residual", " cleaner images", "less clean images", "no significant difference in image quality"),
    ],
)
def test_words_flip_with_the_numbers(measure, better, worse, unclear):
    sign = -1 if measure == "residual" else 1
    up, down = sorted([0.1 * sign, 0.3 * sign]), sorted([-0.1 * sign, -0.3 * sign])
    assert better in with_reference(**{measure: [0.2 * sign, *up]})
    assert worse in with_reference(**{measure: [-0.2 * sign, *down]})
    assert unclear in with_reference(**{measure: [0.0, -0.1, 0.1]})
    assert f"unmeasured {measure}" in with_reference(**{measure: None})


def test_steps_fewer_more_or_the_same():
    changed = summary()
    learned = changed["rows"][-1]
    assert "takes 14.5 ± 3.5 steps where static-28 takes 28 (48 % fewer)" in verdict(changed)
    learned["steps_mean"] = 35.0
    assert "(25 % more)" in verdict(changed)
    learned["steps_mean"] = 28.0
    assert "(the same)" in verdict(changed)


def test_baselines_are_grouped_by_effect():
    changed = summary()
    changed["paired"] = {
        "static-28": changed["paired"]["static-28"],
        "a": {"reward": [0.2, 0.1, 0.3]},
        "b": {"reward": [0.2, 0.1, 0.3]},
        "c": {"reward": [-0.2, -0.3, -0.1]},
        "d": {"reward": [0.0, -0.3, 0.1]},
        "e": {},
    }
    end = "its reward is above a and b, below c, not significantly different from d and not compared with e."
    assert verdict(changed).endswith(end)
    assert verdict(changed).count(". ") == 0  # one sentence


def test_only_the_reference_or_nothing_at_all():
    changed = summary()
    changed["paired"] = {}
    assert verdict(changed).endswith("against static-28.")
    assert "an unmeasured reward, an unmeasured accuracy and an unmeasured residual" in verdict(changed)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.5, 0.3, 0.7), "Harder images get more steps: rank correlation 0.50 [0.30, 0.70]."),
        ((-0.5, -0.7, -0.3), "Harder images get fewer steps"),
        ((0.1, -0.1, 0.3), "The relation of steps and difficulty is not significant"),
        ((None, None, None), "does not exist"),
        ((math.nan, 0.0, 1.0), "does not exist"),
    ],
)
def test_relation(numbers, words):
    assert words in relation(dict(zip(("correlation", "low", "high"), numbers, strict=True)))


def test_relation_without_numbers():
    assert "does not exist" in relation(None)


def test_signed_interval():
    assert signed_interval([0.0314, -0.01, 0.0526]) == "+0.031 [−0.010, +0.053]"
    assert signed_interval([0.00042, 0.00011, 0.00048]) == "+0.00042 [+0.00011, +0.00048]"  # HPSv2 is a cosine
    assert signed_interval([0.0005, 0.0005, 0.0005]) == "+0.001 [+0.001, +0.001]"
    assert signed_interval([12.5, 9.1, 16.2]) == "+12.500 [+9.100, +16.200]"
    assert signed_interval(None) == signed_interval([math.nan, 0, 1]) == "–"


def judged(reward, **others):
    facts = summary()
    facts["paired"] = {
        "static-28": {"reward": reward, "accuracy": [0.1, 0.0, 0.2], "residual": [-1, -2, -0.5]} | others
    }
    return facts


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({}, "agree with the sign of the reward everywhere"),
        ({"accuracy": [-0.1, -0.2, 0.1]}, "accuracy against static-28 (worse, not significantly)"),
        ({"accuracy": [-0.1, -0.2, -0.05]}, "accuracy against static-28 (worse, significantly)"),
        ({"residual": [1.0, 0.5, 2.0]}, "residual against static-28 (worse, significantly)"),
        ({"accuracy": None, "residual": None}, "agree with the sign of the reward everywhere"),
    ],
)
def test_judges_that_contradict_the_reward_are_named(others, sentence):
    assert sentence in agreement(judged([0.2, 0.1, 0.3], **others))


def test_a_judge_may_see_a_gain_where_the_reward_sees_none():
    assert "accuracy against static-28 (better, not significantly)" in agreement(judged([-0.2, -0.3, -0.1]))


def test_judges_are_compared_at_every_quality():
    facts = judged([0.2, 0.1, 0.3])
    points = {"best grid": {"reward": [0.2, 0.1, 0.3], "accuracy": [-0.1, -0.2, 0.1], "residual": [-1, -2, -0.5]}}
    facts["points"] = [{"quality": 0.25, "paired": points}]
    assert agreement(facts).endswith("accuracy at quality 0.25 against best grid (worse, not significantly).")
