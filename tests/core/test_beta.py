import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Beta, kl_divergence

from tpdm.core.errors import ConfigError
from tpdm.policies import beta

RAW = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=5)
quick = settings(deadline=None, max_examples=40)


def wide(params: beta.BetaParams) -> Beta:
    return Beta(params.alpha_B.double(), params.beta_B.double())


def params_of(a: list[float], b: list[float]) -> beta.BetaParams:
    n = min(len(a), len(b))
    return beta.beta_params(torch.tensor(a[:n]), torch.tensor(b[:n]))


def test_parameters_are_eq_4():
    params = beta.beta_params(torch.tensor([2.5, 0.0]), torch.tensor([1.0, 0.0]))
    assert params.alpha_B.tolist() == pytest.approx([13.18249, 2.0])
    assert params.beta_B.tolist() == pytest.approx([3.71828, 2.0])
    assert beta.mode(params).tolist() == pytest.approx([0.8175745, 0.5])
    assert beta.mean(params).tolist() == pytest.approx([13.18249 / 16.90077, 0.5])


def test_raw_outputs_are_limited_but_their_gradient_is_not_lost():
    a_B = torch.tensor([-1e30, -8.0, 3.0, 8.0, 1e30], requires_grad=True)
    params = beta.beta_params(a_B, torch.zeros(5))
    assert params.alpha_B[0] == params.alpha_B[1] > 1
    assert params.alpha_B[4] == params.alpha_B[3] < 2983
    params.alpha_B.log().sum().backward()
    assert torch.isfinite(a_B.grad).all()
    assert (a_B.grad > 0).all()


def test_a_broken_network_gives_nan():
    params = beta.beta_params(torch.tensor([float("nan"), float("inf")]), torch.zeros(2))
    assert params.alpha_B.isnan().all()


def test_half_precision_outputs_give_fp32():
    params = beta.beta_params(torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16))
    action_B = torch.full((2,), 0.3)
    for value in (params.alpha_B, params.beta_B, beta.mode(params), beta.log_prob(params, action_B)):
        assert value.dtype == torch.float32
    assert beta.entropy(params).dtype == beta.kl(params, params).dtype == torch.float32


@quick
@given(RAW, RAW, st.floats(beta.ACTION_MIN, beta.ACTION_MAX))
def test_log_prob_and_entropy_match_torch_in_fp64(a, b, action):
    params = params_of(a, b)
    action_B = torch.full_like(params.alpha_B, action)
    expected_B = wide(params).log_prob(action_B.double()).float()
    torch.testing.assert_close(beta.log_prob(params, action_B), expected_B, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beta.entropy(params), wide(params).entropy().float(), rtol=1e-5, atol=1e-5)


@quick
@given(RAW, RAW, RAW, RAW)
def test_kl_matches_torch_and_is_zero_only_for_equal_parameters(a, b, c, d):
    n = min(map(len, (a, b, c, d)))
    p, q = params_of(a[:n], b[:n]), params_of(c[:n], d[:n])
    kl_B = beta.kl(p, q)
    torch.testing.assert_close(kl_B, kl_divergence(wide(p), wide(q)).float(), rtol=1e-4, atol=1e-5)
    assert (kl_B > -1e-6).all()
    assert beta.kl(p, p).tolist() == [0.0] * n


@quick
@given(RAW, RAW)
def test_mode_is_the_sigmoid_and_the_highest_density(a, b):
    params = params_of(a, b)
    n = len(params.alpha_B)
    expected_B = torch.sigmoid(torch.tensor(a[:n]) - torch.tensor(b[:n]))
    torch.testing.assert_close(beta.mode(params), expected_B, rtol=5e-4, atol=0)
    best_B = beta.log_prob(params, beta.mode(params).clamp(beta.ACTION_MIN, beta.ACTION_MAX))
    for action in (0.05, 0.3, 0.5, 0.7, 0.95):
        assert (beta.log_prob(params, torch.full((n,), action)) <= best_B + 1e-5).all()


def test_log_prob_gradient_matches_torch():
    a_B = torch.tensor([2.5, -1.0], requires_grad=True)
    b_B = torch.tensor([1.0, 3.0], requires_grad=True)
    action_B = torch.tensor([0.8, 0.1])
    ours = torch.autograd.grad(beta.log_prob(beta.beta_params(a_B, b_B), action_B).sum(), (a_B, b_B))
    reference = Beta(1 + a_B.double().exp(), 1 + b_B.double().exp()).log_prob(action_B.double()).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(reference, (a_B, b_B)))


def test_a_draw_belongs_to_its_seed_and_index():
    params = beta.beta_params(torch.linspace(-1, 3, 6), torch.linspace(2, 0, 6))
    seeds, index_B = [7, 8, 9, 7, 2**63, 0], torch.tensor([0, 0, 3, 1, 2, 0])
    together_B = beta.sample(params, seeds, index_B)
    for i, seed in enumerate(seeds):
        one = beta.BetaParams(params.alpha_B[i : i + 1], params.beta_B[i : i + 1])
        assert beta.sample(one, [seed], [int(index_B[i])]).item() == together_B[i].item()
    same = beta.beta_params(torch.ones(4), torch.ones(4))
    assert len(set(beta.sample(same, [1, 1, 2, 3], [0, 1, 0, 0]).tolist())) == 4
    first = numpy.random.default_rng([1, 0]).beta(1 + numpy.e, 1 + numpy.e)
    assert beta.sample(same, [1, 1, 2, 3], [0, 1, 0, 0])[0].item() == pytest.approx(first, rel=1e-6)


def test_draws_have_the_mean_and_spread_of_the_beta():
    params = beta.beta_params(torch.full((4000,), 2.5), torch.full((4000,), 1.0))
    r_B = beta.sample(params, list(range(4000)), [0] * 4000)
    expected = Beta(params.alpha_B[0], params.beta_B[0])
    assert r_B.mean().item() == pytest.approx(expected.mean.item(), abs=5e-3)
    assert r_B.std().item() == pytest.approx(expected.stddev.item(), rel=0.05)
    assert r_B.dtype == torch.float32
    assert not r_B.requires_grad


def test_draws_are_clamped():
    ends = beta.beta_params(torch.tensor([-8.0, 8.0]), torch.tensor([8.0, -8.0]))
    assert beta.sample(ends, [0, 0], [0, 0]).tolist() == pytest.approx([beta.ACTION_MIN, beta.ACTION_MAX])


@pytest.mark.parametrize(
    ("seeds", "index", "word"),
    [
        ([-1], [0], "0 or more"),
        ([1], [-2], "0 or more"),
        ([1, 2], [0, 0], "per image"),
        ([1], [], "per image"),
    ],
)
def test_bad_seeds_are_named(seeds, index, word):
    with pytest.raises(ConfigError, match=word):
        beta.sample(beta.beta_params(torch.zeros(1), torch.zeros(1)), seeds, index)
