import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from tests.core.test_solvers import QUIET, SD, noise, run, toy_network
from tpdm.core.paths import vp_path
from tpdm.core.solvers import DDIM, Dpmpp2M


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("one", [True, False])
def test_ddim_is_the_stock_scheduler_bit_by_bit(prediction, one):
    stock = DDIMScheduler(**SD, prediction_type=prediction, set_alpha_to_one=one, clip_sample=False)
    stock.set_timesteps(10)
    path = vp_path(stock.alphas_cumprod, stock.final_alpha_cumprod.item(), prediction)
    x = theirs = noise(2, 4, 8, 8)
    times = [*path.time_of_timestep(stock.timesteps).tolist(), 0.0]
    for ours, t, timestep in zip(run(DDIM(path), x, times), times, stock.timesteps, strict=False):
        theirs = stock.step(toy_network(theirs, t), timestep, theirs, return_dict=False)[0]
        assert torch.equal(ours, theirs)


@QUIET
def test_vp_dpmpp_2m_is_the_stock_scheduler():
    stock = DPMSolverMultistepScheduler(**SD, solver_order=2)
    stock.set_timesteps(12)
    path = vp_path(stock.alphas_cumprod)
    x = theirs = noise(2, 4, 8, 8)
    times = [*path.time_of_timestep(stock.timesteps).tolist(), 0.0]
    for ours, t, timestep in zip(run(Dpmpp2M(path), x, times), times, stock.timesteps, strict=False):
        theirs = stock.step(toy_network(theirs, t), timestep, theirs, return_dict=False)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
