"""NaN stops a run with an error that names the prompt and the seed of the image."""

import re
from dataclasses import replace
from functools import wraps

import pytest
import torch

from tests.support.gaussian_problem import DistanceReward, make_small_problem
from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.core.errors import NonFiniteError, RewardError, TrainingError
from tpdm.core.seeding import Stream, derive_seed
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.samplers import PipelineSampler
from tpdm.training.loop import train_loop

PROMPTS, SEEDS = ["a", "b", "c", "d", "e"], [10, 11, 12, 13, 14]
CALL = {"height": 32, "width": 32, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    pipe = make_tiny_sd3(tmp_path_factory.mktemp("sd3"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def poison(monkeypatch, module, row, call):
    """NaN in one row of the ``call``-th forward of a module."""
    forward, seen = module.forward, []

    @wraps(forward)
    def poisoned(*args, **options):
        output = forward(*args, **options)
        seen.append(1)
        if len(seen) == call:
            next(x for x in output if x is not None)[row] = float("nan")
        return output

    monkeypatch.setattr(module, "forward", poisoned)


def test_a_prediction_that_is_nan_names_prompt_and_seed(sd3, monkeypatch):
    sampler = PipelineSampler(attach(sd3, FixedSchedule([1.0, 0.5, 0.0])), 2, CALL)
    poison(monkeypatch, sd3.transformer, row=1, call=4)  # the second step of "c" and "d"
    with pytest.raises(NonFiniteError, match=r"prediction for image 1 .* has prompt 'd' and seed 13\.$") as caught:
        sampler(SampleRequest(PROMPTS, SEEDS))
    assert "\n" not in str(caught.value)


def test_features_that_are_nan_name_prompt_and_seed(sd3, monkeypatch):
    widths = infer_feature_shapes(sd3, CALL)
    policy = TimePredictionModule(TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2))
    sampler = PipelineSampler(attach(sd3, policy), 3, CALL)
    poison(monkeypatch, sd3.transformer.transformer_blocks[-1], row=0, call=1)
    with pytest.raises(NonFiniteError, match=r"has prompt 'a' and seed 10\.$"):
        sampler(SampleRequest(PROMPTS, SEEDS))


def test_a_score_that_is_nan_names_the_seed_that_made_it(tmp_path):
    class Nan(DistanceReward):
        def score(self, images_B3HW, prompts):
            scores = super().score(images_B3HW, prompts)
            if len(prompts) == 16:  # of an update, not of a validation
                scores[5] = float("nan")
            return scores

    recipe, parts = make_small_problem(tmp_path, Nan())
    seed = derive_seed(recipe.seed, Stream.NOISE, 0, 1, 0)  # image 5 is of the second prompt
    with pytest.raises(RewardError, match=rf"returned nan .* with seed {seed}\. Every score must be finite"):
        train_loop(recipe, parts, tmp_path)


@pytest.mark.parametrize("ratio", ["trajectory", "decision"])
def test_a_gradient_that_is_nan_names_prompt_and_seed(tmp_path, ratio):
    recipe, parts = make_small_problem(tmp_path, rl={"ratio": ratio})
    first = {}

    def poisoned(request):
        generated = parts.sampler(request)
        if request.record and len(request) == 16:  # an update
            first.update(prompt=request.prompts[7], seed=request.seeds[7])
            step = generated.trajectories[7].steps[0]
            step.observation.temb_BE.fill_(float("inf"))
        return generated

    with pytest.raises(TrainingError, match="The gradient norm of the update is nan") as caught:
        train_loop(recipe, replace(parts, sampler=poisoned), tmp_path)
    assert isinstance(caught.value, NonFiniteError)
    assert re.search(rf"has prompt '{first['prompt']}' and seed {first['seed']}\.$", str(caught.value))
    assert all(torch.isfinite(p).all() for p in parts.policy.parameters())
