"""Every family of pipelines, on a tiny instance with random weights: all give the same guarantees."""

import inspect
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.support.families import FAMILIES, FLOW_FAMILIES, VP_FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tpdm.config.recipe import OptimizerConfig, RlConfig
from tpdm.core.solvers import VP_SOLVERS
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import default_times, infer_feature_shapes
from tpdm.pipelines.registry import DENOISERS, find_denoiser, find_entry
from tpdm.pipelines.time_mapping import vp_times
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.training.policy_update import make_optimizer, update_policy
from tpdm.training.rollout import make_rollout_buffer

TIMES = [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]
LISTS = [[1.0, 0.4, 0.0], [1.0, 0.9, 0.6, 0.2, 0.0], [1.0, 0.5, 0.3, 0.0]]
STEPS = [2, 4, 3]


@pytest.fixture
def rows_computed(request):
    """Number of rows of every denoiser call, counted at its time embedder."""
    pipe = tiny_pipe(request.node.callspec.params["name"])
    denoiser, rows = find_denoiser(pipe), []
    entry = find_entry(denoiser)

    def count(module, args, output):
        rows.append(len(output if entry.temb_index is None else output[entry.temb_index]))

    handle = denoiser.get_submodule(entry.temb).register_forward_hook(count)
    yield rows
    handle.remove()


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stock_flow(name, images):
    """The unmodified pipeline on a given list, with its scheduler's shift off; and the times it used."""
    pipe, family = tiny_pipe(name), FAMILIES[name]
    own = pipe.scheduler
    exact = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(own.config, **exact)
    takes_list = "sigmas" in inspect.signature(pipe.__call__).parameters
    times = {"sigmas": TIMES[:-1]} if takes_list else {"num_inference_steps": 5}
    try:
        latents = pipe(**family.text(images), **family.arguments(), **times, generator=generators(range(images)))[0]
        return latents, pipe.scheduler.sigmas.tolist()
    finally:
        pipe.scheduler = own


@pytest.mark.parametrize("name", FLOW_FAMILIES)
def test_a_fixed_schedule_equals_the_stock_scheduler(name):
    expected, times = stock_flow(name, 2)
    family = FAMILIES[name]
    output = attach(tiny_pipe(name), FixedSchedule(times))(**family.text(2), **family.arguments(), seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    assert output.times == [times] * 2
    assert output.nfe_rows == 2 * 5 * family.calls * family.rows


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", VP_FAMILIES)
def test_a_list_of_timesteps_equals_the_stock_ddim(name, spacing):
    pipe, family = tiny_pipe(name), FAMILIES[name]
    own = pipe.scheduler
    pipe.scheduler = type(own).from_config(own.config, timestep_spacing=spacing, set_alpha_to_one=spacing == "trailing")
    call = {**family.text(2), **family.arguments()}
    try:
        expected = pipe(**call, num_inference_steps=5, generator=generators([0, 1]))[0]
        assert pipe.scheduler.timesteps.tolist() == [round(1000 * t - 1) for t in default_times(pipe, 5, {})[:-1]]
        output = attach(pipe, FixedSchedule(vp_times(pipe.scheduler, 5)))(**call, seeds=[0, 1])
    finally:
        pipe.scheduler = own
    assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("name", FAMILIES)
def test_three_schedules_in_one_batch_equal_three_single_runs(name, rows_computed):
    pipe, family = tiny_pipe(name), FAMILIES[name]
    text, call = family.text(3), family.arguments()
    together = attach(pipe, FixedSchedule(LISTS), max_steps=28)(**text, **call, seeds=[0, 1, 2])
    assert together.steps == STEPS
    active = [sum(steps > i for steps in STEPS) for i in range(max(STEPS))]
    # Early end and finished rows: as many calls as the longest list has steps, each of active rows alone.
    assert rows_computed == [family.rows * n for n in active for _ in range(family.calls)]
    assert together.nfe_rows == sum(rows_computed)
    for b in range(3):
        rows = {key: value[b : b + 1] for key, value in text.items()}
        alone = attach(pipe, FixedSchedule(LISTS[b]))(**rows, **call, seeds=[b])
        assert alone.steps == [STEPS[b]]
        scale = max(1.0, together.images[b].abs().max().item())
        assert (alone.images[0] - together.images[b]).abs().max().item() <= family.tolerance * scale


@pytest.mark.parametrize("name", VP_FAMILIES)
def test_both_orders_of_the_diffusion_solvers_run_per_image(name):
    pipe, family = tiny_pipe(name), FAMILIES[name]
    text, call = family.text(3), family.arguments()
    results = {}
    for solver in VP_SOLVERS:
        results[solver] = attach(pipe, FixedSchedule(LISTS), solver=solver)(**text, **call, seeds=[0, 1, 2]).images
        rows = {key: value[1:2] for key, value in text.items()}
        alone = attach(pipe, FixedSchedule(LISTS[1]), solver=solver)(**rows, **call, seeds=[1]).images[0]
        scale = max(1.0, alone.abs().max().item())
        assert (alone - results[solver][1]).abs().max().item() <= family.tolerance * scale
    assert not torch.allclose(results["euler"], results["dpmpp_2m"])


@pytest.mark.parametrize("name", FAMILIES)
def test_one_training_update(name):
    pipe, family = tiny_pipe(name), FAMILIES[name]
    widths = infer_feature_shapes(pipe, {**family.text(1), **family.arguments(), "prompt": None})
    shape = TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2, storage="fp32")
    policy = TimePredictionModule(shape, seed=3)
    driven = attach(pipe, policy, max_steps=6)
    call = {**family.text(3), **family.arguments()}
    output = driven(**call, seeds=[0, 1, 2], sample=True, decision_seeds=[3, 4, 5], record=True)
    replay = make_rollout_buffer(output.trajectories)
    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    score_B = output.images.flatten(1).mean(1) - 0.1 * torch.tensor(output.steps)
    advantage_B = (score_B - score_B.mean()) / score_B.std()
    optimizer = make_optimizer(policy, OptimizerConfig(lr=1e-3))
    seen = update_policy(policy, optimizer, replay, advantage_B, RlConfig(epochs=1), 1.0, None)
    assert seen.ratio_deviation < 1e-5
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in policy.parameters()]))
    after = policy.evaluate(replay.observation, replay.action_T)[0].detach()
    assert (after - replay.logp_T).abs().max() > 1e-5


def look(name, guided, **more):
    """Features of two images in the first step."""
    policy, family = LookingPolicy(), FAMILIES[name]
    call = {**family.text(2, guided), **family.arguments(guided), **more}
    attach(tiny_pipe(name), policy, max_steps=1)(**call, seeds=[0, 1])
    return policy.seen[0]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.guided])
def test_only_conditional_rows_reach_the_policy(name):
    guided, plain = look(name, True), look(name, False)
    for part in ("first_BDHW", "last_BDHW", "temb_BE"):
        scale = max(1.0, getattr(plain, part).abs().max().item())
        torch.testing.assert_close(getattr(guided, part), getattr(plain, part), atol=5e-6 * scale, rtol=0)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.guided])
def test_guided_features_extrapolate_from_unconditional_to_conditional_rows(name, monkeypatch):
    conditional, seen = look(name, True), []
    for w in (0.0, 1.0, 3.0):
        monkeypatch.setattr("tpdm.pipelines.attach.feature_guidance", lambda guidance, policy, arguments, w=w: w)
        seen.append(look(name, True))
    for part in ("first_BDHW", "last_BDHW", "temb_BE"):
        u, c, beyond = (getattr(features, part) for features in seen)
        scale = max(1.0, beyond.abs().max().item())
        torch.testing.assert_close(c, getattr(conditional, part), atol=1e-5 * scale, rtol=0)
        torch.testing.assert_close(beyond, u + 3 * (c - u), atol=1e-5 * scale, rtol=0)
    assert not torch.allclose(seen[0].last_BDHW, seen[1].last_BDHW, atol=1e-4)


def patch_sums(output, grid):
    """Prediction of the denoiser, summed over every patch: (B, ...) -> (B, H, W)."""
    height, width = grid
    x = torch.stack(output).squeeze(2) if isinstance(output, list) else output
    if x.ndim == 3:
        return x.sum(-1).view(-1, height, width)
    x = x.sum(1).flatten(1, -2)
    return x.unflatten(2, (width, -1)).sum(3).unflatten(1, (height, -1)).sum(2)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_map_projects_to_the_prediction_token_by_token(name):
    """The final layer, applied to the map that a policy sees, gives the denoiser's own output, where it is."""
    pipe, outputs = tiny_pipe(name), []
    denoiser = find_denoiser(pipe)
    handle = denoiser.register_forward_hook(lambda m, a, output: outputs.append(output[0]))
    try:
        last_BDHW = look(name, False).last_BDHW
    finally:
        handle.remove()
    final = denoiser.get_submodule(find_entry(denoiser).last)
    expected = patch_sums(outputs[0], last_BDHW.shape[2:])
    with torch.no_grad():
        if isinstance(final, torch.nn.Conv2d):
            found = final(last_BDHW).sum(1)
        else:
            found = final(last_BDHW.movedim(1, -1)).sum(-1)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_map_is_in_raster_order(name):
    """Numbers written on the image tokens come out as rows and columns."""
    denoiser = find_denoiser(tiny_pipe(name))
    module = denoiser.get_submodule(find_entry(denoiser).first)

    def write(m, args, output):
        if output.ndim > 3:
            places = torch.arange(output[0, 0].numel(), dtype=output.dtype)
            return places.view(output.shape[2:]).expand_as(output)
        tokens = output.unflatten(0, (2, -1)) if output.ndim == 2 else output
        places = torch.arange(tokens.shape[1], dtype=output.dtype)[None, :, None]
        return places.expand_as(tokens).reshape(output.shape)

    handle = module.register_forward_hook(write)
    try:
        first_BDHW = look(name, False).first_BDHW
    finally:
        handle.remove()
    height, width = first_BDHW.shape[2:]
    assert height > width > 1
    assert torch.equal(first_BDHW[0, 0], torch.arange(float(height * width)).view(height, width))
    assert torch.equal(first_BDHW[1], first_BDHW[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_denoiser_receives_the_time_in_the_units_of_its_entry(name):
    pipe, family = tiny_pipe(name), FAMILIES[name]
    denoiser, fed = find_denoiser(pipe), []
    entry, parameters = find_entry(denoiser), list(inspect.signature(denoiser.forward).parameters)
    key = "t" if "t" in parameters else "timestep"

    def keep(module, args, kwargs):
        fed.append(kwargs[key][0].item() if key in kwargs else args[parameters.index(key)][0].item())

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        attach(pipe, FixedSchedule(TIMES))(**family.text(1), **family.arguments(), seeds=[0])
    finally:
        handle.remove()
    expected = [entry.time_scale * t + entry.time_offset for t in TIMES[:-1] for _ in range(family.calls)]
    assert fed == pytest.approx(expected, abs=1e-4)


def test_every_entry_has_a_family():
    classes = {type(find_denoiser(tiny_pipe(name))).__name__ for name in FAMILIES}
    assert classes == set(DENOISERS)


@pytest.mark.parametrize("name", ["SD1.5", "SDXL", "PixArt-Sigma"])
def test_default_times_of_diffusion_schedulers_fall_to_zero(name):
    times = default_times(tiny_pipe(name), 7, {})
    assert len(times) == 8
    assert times[-1] == 0.0
    assert all(now > then for now, then in pairwise(times))
