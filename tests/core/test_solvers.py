from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from tpdm.core import paths
from tpdm.core.paths import VPPath, vp_path
from tpdm.core.solvers import DDIM, SOLVERS, Dpmpp2M, Solver, euler

# diffusers 0.42 passes a tensor to numpy without the copy keyword. This package cannot change that.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def toy_network(x: torch.Tensor, t: float) -> torch.Tensor:
    return (torch.sin(3 * x.float()) + 0.5 * x.float() * (1 + t)).to(x.dtype)


def random_times(seed: int, n: int) -> torch.Tensor:
    ratio_N = 0.3 + 0.6 * torch.rand(n - 1, generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.ones(1), ratio_N.cumprod(0), torch.zeros(1)])


def run(solver: Solver, x: torch.Tensor, times: list[float]) -> list[torch.Tensor]:
    """All latents of a batch under one schedule, with the toy network."""
    state, trail = solver.init(x), []
    for t, t_next in pairwise(times):
        ends = torch.full((len(x),), t), torch.full((len(x),), t_next)
        x, state = solver.step(x, toy_network(x, t), *ends, state)
        trail.append(x)
    return trail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_stock_scheduler_bit_by_bit(dtype, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(9)
    x = stock = noise(3, 4, 8, 8, dtype=dtype)
    times = scheduler.sigmas.tolist()
    for ours, t, timestep in zip(run(SOLVERS["euler"], x, times), times, scheduler.timesteps, strict=False):
        stock = scheduler.step(toy_network(stock, t), timestep, stock, return_dict=False)[0]
        assert ours.dtype == stock.dtype == dtype
        assert torch.equal(ours, stock)


@QUIET
@pytest.mark.parametrize("n", [1, 2, 6, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m_is_the_stock_scheduler(n, shift):
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2, flow_shift=shift
    )
    scheduler.set_timesteps(n)
    x = stock = noise(2, 4, 8, 8)
    times = scheduler.sigmas.tolist()
    for ours, t, timestep in zip(run(SOLVERS["dpmpp_2m"], x, times), times, scheduler.timesteps, strict=False):
        stock = scheduler.step(toy_network(stock, t), timestep, stock, return_dict=False)[0]
        torch.testing.assert_close(ours, stock, rtol=0, atol=5e-6)


def all_solvers(path: VPPath) -> dict[str, Solver]:
    return {**SOLVERS, "ddim": DDIM(path), "vp_dpmpp_2m": Dpmpp2M(path)}


@pytest.fixture(scope="module")
def path() -> VPPath:
    return vp_path(DDIMScheduler(**SD).alphas_cumprod)


@pytest.mark.parametrize("name", [*SOLVERS, "ddim", "vp_dpmpp_2m"])
def test_inactive_images_keep_x_and_state(name, path):
    solver, x = all_solvers(path)[name], noise(4, 3, 2, 2)
    t_B, t_next_B = torch.ones(4), torch.full((4,), 0.6)
    x, state = solver.step(x, noise(4, 3, 2, 2, seed=1), t_B, t_next_B, solver.init(x))
    t_B, t_next_B = torch.tensor([0.6, 0.6, 0.0, 0.6]), torch.tensor([0.3, 0.3, 0.0, 0.6])
    v = noise(4, 3, 2, 2, seed=2)
    v[1:] = float("nan")
    active_B = torch.tensor([True, False, True, True])
    after, state_after = solver.step(x, v, t_B, t_next_B, state, active_B)
    assert torch.equal(after[1:], x[1:])
    assert not torch.equal(after[0], x[0])
    assert torch.equal(state_after.previous[1:], state.previous[1:])
    assert torch.equal(state_after.t_previous_B[1:], state.t_previous_B[1:])
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("name", [*SOLVERS, "ddim", "vp_dpmpp_2m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_step_from_noise_to_image_is_finite_and_equals_x0(name, dtype, path):
    solver, x = all_solvers(path)[name], noise(2, 3, 4, 4, dtype=dtype)
    v = noise(2, 3, 4, 4, seed=1, dtype=dtype)
    one_B = torch.ones(2)
    landed, _ = solver.step(x, v, one_B, torch.zeros(2), solver.init(x))
    target = x.float() - v.float()
    if "vp" in name or name == "ddim":
        target = path.x0_eps(x.float(), v.float(), one_B)[0]
    assert landed.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(landed.float(), target, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "order"), [("dpmpp_2m", 1), ("ab2", 2)])
def test_second_steps_use_the_history(name, order):
    """AB2 integrates the velocity v = 2 t exactly after its first step. Euler does not."""
    solver, x = SOLVERS[name], torch.zeros(1, 1, dtype=torch.float64)
    state = solver.init(x)
    times = torch.tensor([[1.0], [0.7], [0.5], [0.1]], dtype=torch.float64)
    x, state = solver.step(x, 2 * times[0][:, None], times[0], times[1], state)
    start, expected = x.item(), x.item() + 0.1**2 - 0.7**2
    for t_B, t_next_B in pairwise(times[1:]):
        x, state = solver.step(x, 2 * t_B[:, None], t_B, t_next_B, state)
    plain = start + 2 * 0.7 * (0.5 - 0.7) + 2 * 0.5 * (0.1 - 0.5)
    assert abs(x.item() - plain) > 1e-3
    if order == 2:
        assert x.item() == pytest.approx(expected, abs=1e-12)


def test_dpmpp_2m_is_exact_where_the_image_is_known():
    x0, eps = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    solver, x = SOLVERS["dpmpp_2m"], eps
    state, times = solver.init(eps), torch.stack([random_times(0, 6), random_times(1, 6)], 1)
    for t_B, t_next_B in pairwise(times):
        x, state = solver.step(x, eps - x0, t_B, t_next_B, state)
        torch.testing.assert_close(x, paths.flow_interpolate(x0, eps, t_next_B), rtol=0, atol=3e-6)


def test_euler_function_takes_one_time_per_image():
    x, v = noise(2, 3), noise(2, 3, seed=1)
    after = euler(x, v, torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.0]))
    assert torch.equal(after, x - 0.5 * v)
