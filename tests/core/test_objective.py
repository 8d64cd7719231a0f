import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpdm.core.errors import ConfigError
from tpdm.training import objective

quick = settings(deadline=None, max_examples=60)


def test_leave_one_out_by_hand():
    reward_PK = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, -3.0]])
    expected_PK = torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0 + 1.5, 0 + 1.5, -3.0]])
    torch.testing.assert_close(objective.rloo_advantages(reward_PK), expected_PK)
    pair_PK = objective.rloo_advantages(torch.tensor([[0.3, 0.7]]))
    torch.testing.assert_close(pair_PK, torch.tensor([[-0.4, 0.4]]))


@quick
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 1000), st.floats(-5, 5))
def test_advantages_center_each_prompt_and_ignore_its_level(p, k, seed, level):
    reward_PK = torch.randn(p, k, generator=torch.Generator().manual_seed(seed))
    advantage_PK = objective.rloo_advantages(reward_PK)
    torch.testing.assert_close(advantage_PK.sum(1), torch.zeros(p), rtol=0, atol=1e-5)
    torch.testing.assert_close(objective.rloo_advantages(reward_PK + level), advantage_PK, rtol=1e-4, atol=1e-5)
    batch_PK = objective.rloo_advantages(reward_PK, "batch")
    assert batch_PK.std(correction=0).item() == pytest.approx(1.0, rel=1e-4)


def test_group_normalization_gives_prompts_equal_weight_down_to_a_floor():
    shape_K = torch.tensor([0.0, 1.0, 2.0, 5.0])
    reward_PK = torch.stack([0.1 * shape_K, 1.0 * shape_K, 1e-5 * shape_K])
    loud, louder, silent = objective.rloo_advantages(reward_PK, "group")
    torch.testing.assert_close(loud, louder)
    assert loud.std(correction=0).item() == pytest.approx(1.0, rel=1e-4)
    assert silent.abs().max() < 1e-3  # far below the floor: it stays small


def test_gamma_normalization_gives_both_ends_equal_weight():
    generator = torch.Generator().manual_seed(0)
    place_P = torch.linspace(-1, 1, 40)
    reward_PK = torch.randn(40, 8, generator=generator) * torch.exp(-1.5 * place_P)[:, None]  # 20 times from end to end
    advantage_PK = objective.rloo_advantages(reward_PK, "gamma", place_P)
    spread = advantage_PK.view(4, -1).std(dim=1)
    assert (spread.max() / spread.min()).item() < 1.5
    torch.testing.assert_close(advantage_PK.sum(1), torch.zeros(40), rtol=0, atol=1e-5)
    twice_PK = objective.rloo_advantages(2 * reward_PK, "gamma", place_P)
    torch.testing.assert_close(twice_PK, advantage_PK)


def test_gamma_normalization_without_a_gamma_range_is_batch_normalization():
    reward_PK = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found_PK, batch_PK = (objective.rloo_advantages(reward_PK, how) for how in ("gamma", "batch"))
    assert torch.equal(found_PK, batch_PK)


def test_scaling_all_rewards_keeps_normalized_advantages():
    reward_PK = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for how in ("batch", "group"):
        small, large = (objective.rloo_advantages(c * reward_PK, how) for c in (0.01, 100.0))
        torch.testing.assert_close(small, large)


def test_equal_rewards_give_zero_not_noise():
    advantage_PK = objective.rloo_advantages(torch.full((3, 4), 0.1), normalize="group")
    assert torch.equal(advantage_PK.abs().clamp_min(1e-6), torch.full((3, 4), 1e-6))


def test_log_ratio_sums_each_trajectory():
    new_T, old_T = (
        torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], requires_grad=True),
        torch.tensor([0.5, 2, 2, 4.25, 5]),
    )
    found_B = objective.trajectory_log_ratio(new_T, old_T, torch.tensor([2, 0, 2, 0, 3]), 4)
    assert found_B.tolist() == [-0.25, 0.0, 1.5, 0.0]
    (found_B * torch.arange(4.0)).sum().backward()
    assert new_T.grad.tolist() == [2.0, 0.0, 2.0, 0.0, 3.0]


def test_ratio_is_one_before_the_first_update():
    logp_T = 50 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    log_ratio_B = objective.trajectory_log_ratio(logp_T, logp_T.clone(), torch.arange(200) % 7, 7)
    advantage_B = torch.arange(7.0) - 3
    loss, seen = objective.clipped_objective(log_ratio_B, advantage_B, 0.2)
    assert loss.item() == pytest.approx(-advantage_B.mean().item())
    assert (seen.ratio_mean, seen.ratio_max, seen.clip_fraction, seen.approx_kl) == (1.0, 1.0, 0.0, 0.0)


def test_clipping_by_hand():
    log_ratio_B = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1])).requires_grad_()
    loss, seen = objective.clipped_objective(log_ratio_B, torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0]), 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8 + 2.2) / 5)
    loss.backward()
    # Moving on along an already profitable, already large change gives nothing; every other trajectory pulls.
    assert log_ratio_B.grad.tolist() == pytest.approx([0.0, -0.1, 0.3, 0.0, -0.44])
    assert seen.clip_fraction.item() == pytest.approx(0.8)
    assert seen.ratio_max.item() == pytest.approx(1.5)
    assert seen.ratio_mean.item() == pytest.approx(1.02)
    k3 = [r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 0.5, 1.1)]
    assert seen.approx_kl.item() == pytest.approx(sum(k3) / 5, rel=1e-5)
    assert not seen.ratio_mean.requires_grad


def test_any_shape_gives_the_same_loss():
    log_ratio_PK, advantage_PK = 0.3 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    flat, _ = objective.clipped_objective(log_ratio_PK.flatten(), advantage_PK.flatten(), 0.1)
    torch.testing.assert_close(objective.clipped_objective(log_ratio_PK, advantage_PK, 0.1)[0], flat)


def test_an_extreme_ratio_stays_finite():
    log_ratio_B = torch.tensor([500.0, -500.0], requires_grad=True)
    loss, seen = objective.clipped_objective(log_ratio_B, torch.tensor([-1.0, 1.0]), 0.2)
    loss.backward()
    assert torch.isfinite(torch.stack([loss.detach(), seen.ratio_max, seen.approx_kl])).all()
    assert torch.isfinite(log_ratio_B.grad).all()


ONE, TWO = torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: objective.discounted_reward(ONE, ONE, 0.0), "gamma"),
        (lambda: objective.discounted_reward(ONE, ONE, 1.01), "gamma"),
        (lambda: objective.discounted_reward(ONE, 0 * ONE, 0.9), "at least 1 step"),
        (lambda: objective.additive_reward(ONE, ONE, -0.1), "cost"),
        (lambda: objective.rloo_advantages(torch.ones(3, 1)), "at least 2"),
        (lambda: objective.rloo_advantages(TWO), "at least 2"),
        (lambda: objective.clipped_objective(ONE, TWO, 0.2), "one advantage per ratio"),
        (lambda: objective.clipped_objective(ONE[:0], ONE[:0], 0.2), "at least one"),
        (lambda: objective.clipped_objective(ONE, ONE, 0.0), "clip"),
    ],
)
def test_bad_arguments_raise(call, word):
    with pytest.raises(ConfigError, match=word):
        call()
