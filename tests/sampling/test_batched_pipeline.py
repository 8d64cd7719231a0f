"""Runs with merged calls have the same images, steps and features as runs on their own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.policies import LookingPolicy
from tpdm.core.errors import BackboneError, TpdmError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import default_times
from tpdm.pipelines.registry import find_denoiser
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.sampling.batching.pipeline import BatchedPipeline

# Of each kind of call: guided in one and in two calls, lists, masks, UNets, position ids.
SOME = ["SD3", "FLUX.1 dev, true CFG", "SD1.5"]
RUNS = 6
ROUNDING = 4e-6


KINDS = [(name, name, True) for name in FAMILIES] + [(name, name, False) for name in SOME]


def row(text, b):
    return {name: value[b : b + 1] for name, value in text.items()}


def one(name, b, guided=True):
    """Arguments of a call for one image of a family."""
    family = FAMILIES[name]
    return {**row(family.text(RUNS, guided), b), **family.arguments(guided), "seeds": [b]}


def hooks(denoiser):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in denoiser.modules()]


@pytest.fixture
def shared(request):
    """A BatchedPipeline of the family named by the test, closed at the end."""
    pipe = tiny_pipe(request.param)
    before = hooks(find_denoiser(pipe))
    made = BatchedPipeline(pipe, num_slots=4)
    yield made
    made.close(TpdmError("closed"))
    assert hooks(find_denoiser(pipe)) == before


def run_all(shared, calls):
    """[(attached, arguments)] -> outputs, all at once."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: shared.run()(call[0], **call[1]), calls))


def uneven(steps, power):
    return [(1 - i / steps) ** power for i in range(steps)] + [0.0]


@pytest.mark.parametrize(("shared", "name"), [(name, name) for name in FAMILIES], indirect=["shared"])
def test_every_family_makes_the_same_images_in_shared_batches(shared, name):
    attached = [attach(shared.pipe, FixedSchedule(uneven(5 + b % 3, 1 + 0.2 * b))) for b in range(RUNS)]
    outputs = run_all(shared, [(attached[b], one(name, b)) for b in range(RUNS)])
    for b, output in enumerate(outputs):
        alone = attached[b](**one(name, b))
        assert (output.steps, output.times, output.nfe_rows) == (alone.steps, alone.times, alone.nfe_rows)
        # fp32 rounds relative to the largest latents, which are 4 in some families and 80 in others.
        size = alone.images[0].abs().max().item()
        assert (output.images[0] - alone.images[0]).abs().max().item() <= ROUNDING * max(1.0, size)
    assert shared.denoiser.rows == sum(output.nfe_rows for output in outputs)


@pytest.mark.parametrize(("shared", "name", "guided"), KINDS, indirect=["shared"])
def test_features_reach_their_own_run(shared, name, guided):
    policies = [LookingPolicy() for _ in range(RUNS)]
    attached = [attach(shared.pipe, policy, max_steps=4) for policy in policies]
    outputs = run_all(shared, [(attached[b], one(name, b, guided)) for b in range(RUNS)])
    seen = [policy.seen for policy in policies]
    for b, output in enumerate(outputs):
        policies[b].seen = []
        alone = attached[b](**one(name, b, guided))
        assert output.steps == alone.steps
        for mixed, single in zip(seen[b], policies[b].seen, strict=True):
            for part in ("first_BDHW", "last_BDHW", "temb_BE"):
                torch.testing.assert_close(getattr(mixed, part), getattr(single, part), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("shared", "name"), [(name, name) for name in SOME], indirect=["shared"])
def test_a_tpm_that_reads_guided_features(shared, name):
    probe = LookingPolicy()
    attach(shared.pipe, probe, max_steps=1)(**one(name, 0))
    first, temb = probe.seen[0].first_BDHW, probe.seen[0].temb_BE
    tpm = TimePredictionModule(
        TPMConfig(first.shape[1], temb.shape[1], channels=8, grid=2, features="guided", storage="fp32")
    )
    attached = attach(shared.pipe, tpm, max_steps=5)
    outputs = run_all(shared, [(attached, one(name, b)) for b in range(RUNS)])
    for b, output in enumerate(outputs):
        alone = attached(**one(name, b))
        assert output.steps == alone.steps
        torch.testing.assert_close(torch.tensor(output.times), torch.tensor(alone.times), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shared", ["SD3"], indirect=True)
def test_calls_are_merged_and_finished_runs_are_not_waited_for(shared):
    steps = [3, 9, 4, 8, 5, 7]
    attached = [attach(shared.pipe, FixedSchedule(uneven(n, 1.0))) for n in steps]
    run_all(shared, [(attached[b], one("SD3", b)) for b in range(RUNS)])
    assert shared.denoiser.rows == 2 * sum(steps)
    # At least as many calls as the slots allow, and far fewer than one for each step.
    assert sum(steps) / 4 <= shared.denoiser.calls <= 0.7 * sum(steps)


@pytest.mark.parametrize("shared", ["SD3"], indirect=True)
def test_runs_of_different_sizes_and_guidance_share_a_pipeline(shared):
    kinds = [{}, {"height": 16}, {"guidance_scale": 1.0}, {"guidance_scale": 2.0}, {"height": 16, "width": 24}, {}]
    attached = attach(shared.pipe, LookingPolicy(), max_steps=5)
    calls = [one("SD3", b) | kind for b, kind in enumerate(kinds)]
    outputs = run_all(shared, [(attached, call) for call in calls])
    for output, call in zip(outputs, calls, strict=True):
        alone = attached(**call)
        assert output.steps == alone.steps
        torch.testing.assert_close(output.images, alone.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared", ["SD3"], indirect=True)
def test_an_error_of_the_denoiser_fails_only_the_runs_of_its_batch(shared):
    def fail(module, args, kwargs):
        if kwargs["hidden_states"].shape[-2:] == (8, 8):
            raise RuntimeError("out of memory")

    handle = shared.pipe.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    attached = attach(shared.pipe, FixedSchedule(uneven(4, 1.0)))

    def attempt(b):
        try:
            size = {"height": 16, "width": 16} if b % 2 else {}
            return shared.run()(attached, **one("SD3", b) | size).steps
        except BackboneError as error:
            return str(error)

    try:
        with ThreadPoolExecutor(RUNS) as pool:
            answers = list(pool.map(attempt, range(RUNS)))
    finally:
        handle.remove()
    assert answers[::2] == [[4]] * 3
    assert all("The denoiser raised RuntimeError" in answer and "out of memory" in answer for answer in answers[1::2])
    assert shared.run()(attached, **one("SD3", 0)).steps == [4]


@pytest.mark.parametrize("shared", ["SD3"], indirect=True)
def test_a_batch_that_does_not_fit_in_memory_is_computed_in_halves(shared, failed_tensors):
    """The failed attempt is freed before the halves, and only the image that does not fit alone fails."""
    probe, bad = LookingPolicy(), 1
    attach(shared.pipe, probe, max_steps=1)(**one("SD3", 0))
    first, temb = probe.seen[0].first_BDHW, probe.seen[0].temb_BE
    tpm = TimePredictionModule(TPMConfig(first.shape[1], temb.shape[1], channels=8, grid=2, storage="fp32"))
    attached = attach(shared.pipe, tpm, max_steps=5)
    marker = one("SD3", bad)["prompt_embeds"][0]

    def fail(module, args, kwargs):
        failed_tensors.check_freed()
        rows, texts = len(kwargs["hidden_states"]), kwargs["encoder_hidden_states"]
        if rows > 4 or any(torch.equal(text, marker) for text in texts):
            activation = failed_tensors.add(torch.zeros(1000))
            raise torch.OutOfMemoryError(f"out of memory with {len(activation)}")

    def attempt(b):
        try:
            return shared.run()(attached, **one("SD3", b))
        except BackboneError as error:
            return error.__cause__

    handle = shared.pipe.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(attempt, range(4)))
    finally:
        handle.remove()
    assert isinstance(outputs.pop(bad), torch.OutOfMemoryError)
    failed_tensors.check_freed()
    assert shared.denoiser.calls > sum(outputs[0].steps)
    for b, output in zip((0, 2, 3), outputs, strict=True):
        alone = attached(**one("SD3", b))
        assert output.steps == alone.steps
        torch.testing.assert_close(output.images, alone.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared", ["SD3"], indirect=True)
def test_an_aborted_run_ends_at_its_next_step_and_releases_its_slot(shared):
    landed = threading.Event()
    run = shared.run(on_step_end=lambda step: landed.set())
    attached = attach(shared.pipe, FixedSchedule(uneven(10_000, 1.0)), max_steps=10_000)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: run(attached, **one("SD3", 0)))
        assert landed.wait(20)
        run.abort(TpdmError("enough"))
        with pytest.raises(TpdmError, match="enough"):
            future.result(20)
    assert shared.run()(attach(shared.pipe, FixedSchedule([1.0, 0.0])), **one("SD3", 1)).steps == [1]


@pytest.mark.parametrize("shared", ["SD3"], indirect=True)
def test_step_infos_contain_the_time_and_an_estimate_of_the_image(shared):
    steps = []
    times = uneven(4, 1.0)
    output = shared.run(on_step_end=steps.append)(attach(shared.pipe, FixedSchedule(times)), **one("SD3", 0))
    assert [step.index for step in steps] == [1, 2, 3, 4]
    assert [step.t for step in steps] == times[1:]
    # The last step goes all the way.
    torch.testing.assert_close(steps[-1].estimate(), output.images, atol=1e-6, rtol=0)


def test_latents_stay_in_fp32_between_steps_of_a_half_precision_pipeline(sd3_bf16):
    call = {"prompt": "a", "seeds": [0], "max_sequence_length": 4, "output_type": "latent"}
    shared = BatchedPipeline(sd3_bf16, num_slots=1)
    attached = attach(sd3_bf16, FixedSchedule(uneven(8, 1.0)))
    steps = []
    try:
        output = shared.run(on_step_end=steps.append)(attached, **call)
    finally:
        shared.close(TpdmError("closed"))
    exact = steps[-1].estimate()
    assert exact.dtype == torch.float32
    assert not torch.equal(exact, exact.bfloat16().float())
    assert torch.equal(output.images, exact.bfloat16())


def test_the_own_schedule_is_computed_without_the_network(sd3):
    before, shared = dict(sd3.scheduler.config), BatchedPipeline(sd3, num_slots=1)
    try:
        times = shared.own_times(4, {"height": 24})
    finally:
        shared.close(TpdmError("closed"))
    assert times == default_times(sd3, 4, {"height": 24})
    assert dict(sd3.scheduler.config) == before
    assert shared.denoiser.calls == 0


def test_components_that_runs_cannot_share_are_refused(flux):
    flux.transformer._cache_config = object()  # as enable_cache leaves it
    try:
        with pytest.raises(BackboneError, match="caches between steps"):
            BatchedPipeline(flux, num_slots=1)
    finally:
        flux.transformer._cache_config = None
