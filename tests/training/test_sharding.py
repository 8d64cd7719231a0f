"""A sharded denoiser trains the same TPM as a whole one."""

from contextlib import suppress
from dataclasses import replace
from functools import wraps

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.processes import finish, start
from tests.support.tiny_runs import assert_same_training, tiny_pipeline, tiny_recipe, write_recipe
from tpdm.config.loader import make_recipe
from tpdm.config.recipe import BackboneConfig
from tpdm.core.errors import ConfigError, TrainingError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.policies.fixed import FixedSchedule
from tpdm.sampling.base import SampleRequest
from tpdm.training.distributed.context import DistributedContext
from tpdm.training.distributed.sharding import CallSynchronizer, SynchronizedSampler, check_shard, find_blocks
from tpdm.training.train import train

# Its parts are measured on images that one process is enough for, and a divided denoiser needs all of them.
COMPOSITE = {
    "name": "composite",
    "offset": 3.0,
    "parts": [{"name": "tinyworld"}, {"name": "python:tests.support.tiny_runs:brightness", "weight": 0.5}],
}


@pytest.fixture(scope="module")
def pipe_folder(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("pipe"))


@pytest.fixture(scope="module")
def whole(pipe_folder, tmp_path_factory, small_tinyworld):
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_recipe(pipe_folder, folder, rl={"prompts_per_update": 5}, reward=COMPOSITE))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["static", "continuous"])
def test_two_processes_with_a_sharded_denoiser_train_the_same_tpm(pipe_folder, whole, tmp_path, way):
    # Five images in one process and five in the other, in batches of two: images and calls differ in number.
    rl = {"prompts_per_update": 5, "rollout_batch": 2, "rollout": way}
    recipe = tiny_recipe(pipe_folder, tmp_path / "run", rl=rl, backbone={"shard": True}, reward=COMPOSITE)
    file = write_recipe(recipe, tmp_path / "recipe.yaml")
    for code, output in finish(start(2, ["-m", "tpdm", "train", str(file)], small=True), timeout=300):
        assert code == 0, output
    assert_same_training(tmp_path / "run", whole)


def test_sharding_in_one_process_is_refused(pipe_folder, tmp_path):
    recipe = tiny_recipe(pipe_folder, tmp_path, backbone={"shard": True})
    with pytest.raises(ConfigError, match=r"backbone\.shard is true in one process\. .*torchrun"):
        train(recipe)


def test_every_process_needs_an_image(pipe_folder, tmp_path):
    recipe = tiny_recipe(pipe_folder, tmp_path, backbone={"shard": True})
    check_shard(recipe, DistributedContext(0, 3), 3)
    with pytest.raises(ConfigError, match=r"3 images .* for 4 processes"):
        check_shard(recipe, DistributedContext(0, 4), 3)
    check_shard(replace(recipe, backbone=BackboneConfig()), DistributedContext(), 3)


def test_sharding_with_offload_is_refused():
    with pytest.raises(ConfigError, match="offload is model and shard is true"):
        make_recipe({"name": "a", "backbone": {"shard": True, "offload": "model"}})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_blocks_apart_from_hooked_modules_and_repeats_calls(name):
    pipe = tiny_pipe(name)
    denoiser, rows = find_denoiser(pipe), []
    entry, blocks = find_entry(denoiser), find_blocks(denoiser)
    assert blocks
    assert not [path for path in (entry.first, entry.last, entry.temb) if f"{path}.".startswith(tuple(blocks))]
    call = {**FAMILIES[name].text(2), **FAMILIES[name].arguments()}
    calls = CallSynchronizer(denoiser, DistributedContext())
    with calls:
        attach(pipe, FixedSchedule([[1.0, 0.5, 0.0], [1.0, 0.0]]))(**call, seeds=[0, 1])
    last = denoiser.get_submodule(entry.temb)
    handle = last.register_forward_hook(lambda module, args, output: rows.append(1))
    calls.repeat()
    handle.remove()
    assert rows == [1]


def test_short_memory_in_one_process_stops_the_run(monkeypatch):
    pipe = tiny_pipe("SD3")
    forward = pipe.transformer.forward

    @wraps(forward)
    def limited(hidden_states, *args, **options):
        if len(hidden_states) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(hidden_states, *args, **options)

    monkeypatch.setattr(pipe.transformer, "forward", limited)
    attached = attach(pipe, FixedSchedule([1.0, 0.5, 0.0]), defaults=FAMILIES["SD3"].arguments())

    class Again:
        """A sampler that tries again in smaller parts, as those of pipelines do."""

        def __call__(self, request):
            for part in (slice(0, 2), slice(0, 1)):
                with suppress(torch.OutOfMemoryError):
                    seeds = request.rows(part).seeds
                    return attached(**FAMILIES["SD3"].text(len(seeds)), seeds=seeds)

    with pytest.raises(TrainingError, match=r"With backbone\.shard=true .* Lower rl\.rollout_batch"):
        SynchronizedSampler(Again(), pipe.transformer, DistributedContext())(SampleRequest(["a", "b"], [0, 1]))
