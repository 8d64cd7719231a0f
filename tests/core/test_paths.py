from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from tpdm.core import grids, paths
from tpdm.core.errors import ConfigError
from tpdm.core.paths import VPPath, vp_path

TIMES = st.lists(st.floats(1 / 64, 63 / 64, width=32), min_size=1, max_size=6)
quick = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def abar_K() -> torch.Tensor:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return scheduler.alphas_cumprod


@pytest.fixture(scope="module")
def path(abar_K) -> VPPath:
    return vp_path(abar_K)


def test_flow_velocity_gives_back_the_image():
    x0, eps = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    t_B = torch.tensor([0.0, 0.4, 1.0])
    x = paths.flow_interpolate(x0, eps, t_B)
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[2], eps[2])
    torch.testing.assert_close(paths.FlowPath().x0(x, eps - x0, t_B), x0)


@quick
@given(st.integers(1, 60), st.floats(0.2, 12), st.floats(1, 9))
def test_grids_fall_from_one_to_zero(n, shift, rho):
    for t_N in (grids.uniform(n), grids.shifted(n, shift), grids.karras(n, rho)):
        assert t_N.dtype == torch.float32
        assert len(t_N) == n + 1
        assert (t_N[0].item(), t_N[-1].item()) == (1.0, 0.0)
        assert (t_N.diff() < 0).all()


def test_grids_have_the_values_of_their_formulas():
    assert grids.uniform(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(grids.shifted(7, 1.0), grids.uniform(7))
    assert grids.shifted(2, 3.0).tolist() == pytest.approx([1.0, 1.5 / 2.0, 0.0])
    sigma_N = [4.0, ((2.0 + 0.5) / 2) ** 2, 0.25]
    expected = [s / (1 + s) / 0.8 for s in sigma_N]
    assert grids.karras(3, rho=2.0, sigma_min=0.25, sigma_max=4.0).tolist() == pytest.approx([*expected, 0.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: grids.uniform(0),
        lambda: grids.uniform(2.5),
        lambda: grids.uniform(True),
        lambda: grids.shifted(4, 0.0),
        lambda: grids.shifted(4, float("nan")),
        lambda: grids.shifted(50, 1e12),
        lambda: grids.karras(4, rho=0.0),
        lambda: grids.karras(4, sigma_min=2.0, sigma_max=1.0),
        lambda: grids.karras(4, sigma_min=0.0),
    ],
)
def test_bad_grids_raise(call):
    with pytest.raises(ConfigError, match=r"^\S+ .*\. (It|They) must .*\. "):
        call()


def test_vp_matches_every_timestep_exactly(path, abar_K):
    k_K = torch.arange(1000)
    t_K = path.time_of_timestep(k_K)
    assert path.timestep(t_K).tolist() == k_K.tolist()
    assert torch.equal(torch.exp(path.log_alphas_cumprod(t_K)).float(), abar_K)
    assert t_K[-1].item() == 1.0
    torch.testing.assert_close(path.sigma(t_K), ((1 - abar_K) / abar_K).sqrt(), rtol=1e-4, atol=0)


@quick
@given(TIMES)
def test_vp_scales_agree_with_sigma(path, times):
    t_B = torch.tensor(times)
    alpha_B, sigma_B = path.alpha_sigma(t_B)
    torch.testing.assert_close(path.sigma(t_B), (sigma_B / alpha_B).float())
    torch.testing.assert_close(alpha_B**2 + sigma_B**2, torch.ones_like(alpha_B))


def test_vp_is_continuous_and_linear_in_log_abar_between_timesteps(path, abar_K):
    t_B = path.time_of_timestep(torch.tensor([400.25]))
    expected = 0.75 * abar_K[400].double().log() + 0.25 * abar_K[401].double().log()
    assert path.log_alphas_cumprod(t_B).item() == pytest.approx(expected.item(), rel=1e-6)
    assert path.timestep(t_B).item() == pytest.approx(400.25, abs=1e-3)


def test_vp_ends(path, abar_K):
    zero = torch.zeros(1)
    assert path.sigma(zero).item() == 0.0
    assert path.timestep(zero).item() == 0.0
    stock = vp_path(abar_K, final=abar_K[0].item())
    assert stock.log_alphas_cumprod(zero).exp().item() == pytest.approx(abar_K[0].item())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_vp_predictions_give_back_image_and_noise(path, prediction):
    x0, eps = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t_B = torch.tensor([0.2, 0.5, 1.0])
    alpha, sigma = (paths.rows(value_B, x0) for value_B in path.alpha_sigma(t_B))
    output = eps if prediction == "epsilon" else alpha * eps - sigma * x0
    found = replace(path, prediction=prediction).x0_eps(alpha * x0 + sigma * eps, output, t_B)
    torch.testing.assert_close(found, (x0, eps))


def test_vp_raises_for_unsupported_values(path, abar_K):
    with pytest.raises(ConfigError, match="strictly decrease"):
        vp_path(torch.tensor([0.9, 0.5, 0.0]))
    with pytest.raises(ConfigError, match="strictly decrease"):
        vp_path(abar_K.flip(0))
    with pytest.raises(ConfigError, match="final"):
        vp_path(abar_K, final=0.5)
    with pytest.raises(ConfigError, match="epsilon"):
        vp_path(abar_K, prediction="sample")
