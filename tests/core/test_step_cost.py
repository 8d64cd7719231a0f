"""The two rewards of ``tpdm.training.objective``: the cost of a step is right and never negative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpdm.training import objective

quick = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize(
    ("gamma", "factors"),
    [(0.97, [0.956, 0.914, 0.875, 0.815, 0.760, 0.683]), (0.85, [0.797, 0.647, 0.535, 0.406, 0.320, 0.236])],
)
def test_discount_has_the_values_of_the_specification(gamma, factors):
    steps_B = torch.tensor([4, 7, 10, 15, 20, 28])
    found_B = objective.discounted_reward(torch.ones(6), steps_B, gamma)
    assert found_B.tolist() == pytest.approx(factors, abs=6e-4)


@quick
@given(st.floats(-3, 3), st.integers(1, 60), st.floats(0.05, 1.0), st.floats(0, 4))
def test_discounted_reward_is_the_sum_of_eq_9(score, n, gamma, offset):
    found = objective.discounted_reward(torch.tensor([score]), torch.tensor([n]), gamma, offset)
    terms = [gamma ** (n - i) * (score + offset) for i in range(1, n + 1)]
    assert found.item() == pytest.approx(sum(terms) / n, rel=1e-5, abs=1e-6)


def test_gamma_one_is_the_limit_and_gamma_may_differ_by_image():
    score_B, steps_B = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([5, 5, 5])
    assert objective.discounted_reward(score_B, steps_B, 1.0, 0.5).tolist() == [2.5] * 3
    mixed_B = objective.discounted_reward(score_B, steps_B, torch.tensor([1.0, 1.0 - 1e-7, 0.9]))
    assert mixed_B[:2].tolist() == pytest.approx([2.0, 2.0], rel=1e-5)
    assert mixed_B[2].item() == pytest.approx(2 * (1 - 0.9**5) / 0.5, rel=1e-5)


@quick
@given(st.floats(-3, 3), st.integers(1, 50), st.integers(1, 10), st.floats(0.5, 1.0), st.floats(0, 0.2))
def test_no_reward_prefers_more_steps_at_equal_score(score, n, more, gamma, cost):
    score_B, steps_B = torch.tensor([score, score]), torch.tensor([n, n + more])
    fewer, longer = objective.discounted_reward(score_B, steps_B, gamma, offset=3.1).tolist()
    assert fewer >= longer
    fewer, longer = objective.additive_reward(score_B, steps_B, cost).tolist()
    assert fewer >= longer


def test_steps_cost_something_strictly():
    score_B, steps_B = torch.full((3,), 1.0), torch.tensor([4, 5, 9])
    assert (objective.discounted_reward(score_B, steps_B, 0.97).diff() < 0).all()
    assert (objective.additive_reward(-score_B, steps_B, 0.02).diff() < 0).all()


def test_without_offset_a_negative_score_rewards_steps():
    """The offset fixes this flaw of eq. (9)."""
    score_B, steps_B = torch.full((2,), -1.0), torch.tensor([4, 20])
    fewer, longer = objective.discounted_reward(score_B, steps_B, 0.97)
    assert longer > fewer
    fewer, longer = objective.discounted_reward(score_B, steps_B, 0.97, offset=3.1)
    assert fewer > longer


def test_additive_reward_by_hand():
    found_B = objective.additive_reward(torch.tensor([1.0, -1.0]), torch.tensor([4, 10]), 0.05)
    assert found_B.tolist() == pytest.approx([0.8, -1.5])
