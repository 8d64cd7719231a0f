"""A denoiser divided over the processes trains the TPM that a whole one trains."""

from dataclasses import replace

import pytest

from tests.support.processes import finish, start
from tests.support.tiny_runs import assert_same_training, tiny_pipeline, tiny_recipe, write_recipe
from tpdm.config import make_recipe
from tpdm.recipe import BackboneConfig
from tpdm.train.run import train
from tpdm.train.shard import check_shard
from tpdm.train.team import Team
from tpdm.types import ConfigError

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
def whole(pipe_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_recipe(pipe_folder, folder, rl={"prompts_per_update": 5}, reward=COMPOSITE))
    return folder


@pytest.mark.parametrize("way", ["waiting", "continuous"])
def test_two_processes_that_share_the_weights_train_the_same_tpm(pipe_folder, whole, tmp_path, way):
    # Five images in one process and five in the other, in batches of two: images and calls differ in number.
    rl = {"prompts_per_update": 5, "rollout_batch": 2, "rollout": way}
    recipe = tiny_recipe(pipe_folder, tmp_path / "run", rl=rl, backbone={"shard": True}, reward=COMPOSITE)
    file = write_recipe(recipe, tmp_path / "recipe.yaml")
    for code, said in finish(start(2, ["-m", "tpdm", "train", str(file)])):
        assert code == 0, said
    assert_same_training(tmp_path / "run", whole)


def test_one_process_has_nobody_to_share_with(pipe_folder, tmp_path):
    recipe = tiny_recipe(pipe_folder, tmp_path, backbone={"shard": True})
    with pytest.raises(ConfigError, match=r"backbone\.shard=true in one process, .*torchrun"):
        train(recipe)


def test_every_process_needs_an_image(pipe_folder, tmp_path):
    recipe = tiny_recipe(pipe_folder, tmp_path, backbone={"shard": True})
    check_shard(recipe, Team(0, 3), 3)
    with pytest.raises(ConfigError, match=r"got 3 images .* for 4 processes"):
        check_shard(recipe, Team(0, 4), 3)
    check_shard(replace(recipe, backbone=BackboneConfig()), Team(), 3)


def test_shared_and_offloaded_is_refused():
    with pytest.raises(ConfigError, match="shard goes with offload none, got offload model"):
        make_recipe({"name": "a", "backbone": {"shard": True, "offload": "model"}})
