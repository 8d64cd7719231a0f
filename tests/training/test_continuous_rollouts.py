"""Continuous rollouts train the same TPM: interrupted, with little memory, in several processes."""

import time
from dataclasses import replace
from functools import wraps
from pathlib import Path
from signal import SIGKILL

import pytest
import torch

from tests.support.interrupted import files
from tests.support.processes import finish, start
from tests.support.tiny_runs import assert_same_training, tiny_pipeline, tiny_recipe, write_recipe
from tpdm.core.errors import TrainingError
from tpdm.core.io import read_metrics
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import load_pipeline
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.pretrained import load_policy
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.batching.denoiser import DenoiserBatcher
from tpdm.sampling.samplers import ContinuousSampler, PipelineSampler
from tpdm.training.build import build_components
from tpdm.training.loop import train_loop
from tpdm.training.train import train

CALL = {"height": 16, "width": 16}
PROMPTS = ["a", "b", "c", "d", "ab", "cd", "ac"]
SEEDS, DECISIONS = list(range(7)), list(range(10, 17))
RECORDED = SampleRequest(PROMPTS, SEEDS, DECISIONS, record=True)


@pytest.fixture(scope="module")
def pipe_folder(tmp_path_factory, small_tinyworld):
    return tiny_pipeline(tmp_path_factory.mktemp("pipe"))


@pytest.fixture(scope="module")
def static_run(pipe_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    train(tiny_recipe(pipe_folder, folder))
    return folder


@pytest.fixture
def attached(pipe_folder):
    pipe = load_pipeline(pipe_folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    widths = infer_feature_shapes(pipe, CALL)
    shape = TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=2)
    return attach(pipe, TimePredictionModule(shape, seed=1).eval(), max_steps=28)


def continuous(pipe_folder: Path, output: Path, **rl):
    return tiny_recipe(pipe_folder, output, rl={"rollout": "continuous", **rl})


def test_training_equals_static_batches_up_to_rounding(pipe_folder, static_run, tmp_path):
    train(continuous(pipe_folder, tmp_path))
    assert_same_training(tmp_path, static_run)


def test_with_one_slot_training_equals_static_batches_to_the_bit(pipe_folder, tmp_path):
    train(tiny_recipe(pipe_folder, tmp_path / "static", rl={"rollout_batch": 1}))
    train(continuous(pipe_folder, tmp_path / "continuous", rollout_batch=1))
    one, other = (load_policy(tmp_path / way / "last").state_dict() for way in ("static", "continuous"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_precomputed_embeddings_give_the_same_training(pipe_folder, static_run, tmp_path):
    recipe = continuous(pipe_folder, tmp_path)
    train(replace(recipe, backbone=replace(recipe.backbone, precompute_prompt_embeddings=True)))
    assert_same_training(tmp_path, static_run)


def test_equal_requests_give_equal_bits(attached):
    sampler = ContinuousSampler(attached, 3, CALL)
    first = sampler(RECORDED)
    for _ in range(5):
        again = sampler(RECORDED)
        assert again.times == first.times
        assert torch.equal(again.images_B3HW, first.images_B3HW)


def full_calls(steps: list[int], places: int) -> int:
    """Calls until all images are done if a place is never empty while one waits."""
    ends = [0] * places
    for n in steps:
        free = min(range(places), key=lambda place: ends[place])
        ends[free] += n
    return max(ends)


def test_slots_stay_full_while_images_wait(attached, monkeypatch):
    made = []
    close = DenoiserBatcher.close
    monkeypatch.setattr(
        DenoiserBatcher, "close", lambda self, error: (made.append((self.calls, self.rows)), close(self, error))
    )
    steps = ContinuousSampler(attached, 3, CALL)(SampleRequest(PROMPTS, SEEDS, DECISIONS)).steps
    assert len(set(steps)) > 1
    assert made == [(full_calls(steps, 3), 2 * sum(steps))]  # two rows an image, under guidance


def limit_rows(pipe, monkeypatch, rows):
    forward = pipe.transformer.forward

    @wraps(forward)
    def limited(hidden_states, *args, **options):
        if len(hidden_states) > rows:
            raise torch.OutOfMemoryError("out of memory")
        return forward(hidden_states, *args, **options)

    monkeypatch.setattr(pipe.transformer, "forward", limited)


def test_short_memory_reduces_the_slots(attached, monkeypatch, caplog):
    whole = PipelineSampler(attached, 7, CALL)(RECORDED)
    limit_rows(attached.pipe, monkeypatch, 4)
    sampler = ContinuousSampler(attached, 5, CALL)
    for _ in range(2):
        again = sampler(RECORDED)
        assert again.steps == whole.steps
        torch.testing.assert_close(again.images_B3HW, whole.images_B3HW, rtol=0, atol=1e-4)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tpdm.sampling.batch_size"]
    assert line == "Out of memory with 5 images at once. The size is now 2. Set rl.rollout_batch=2 to start with it."


def test_one_image_that_does_not_fit_raises_one_error(attached, monkeypatch):
    limit_rows(attached.pipe, monkeypatch, 1)
    with pytest.raises(TrainingError, match=r"Memory is too small for rl\.rollout_batch=1"):
        ContinuousSampler(attached, 3, CALL)(SampleRequest(PROMPTS, SEEDS))


class Interrupting:
    """A reward that interrupts the run after ``calls`` calls."""

    def __init__(self, reward, calls):
        self.name, self._reward, self._calls = reward.name, reward, calls

    def score(self, images_B3HW, prompts):
        self._calls -= 1
        if self._calls < 0:
            raise KeyboardInterrupt
        return self._reward.score(images_B3HW, prompts)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [2, 3])
def test_an_interrupted_run_ends_with_the_same_bits(pipe_folder, tmp_path, calls):
    train_loop(*parts_of(continuous(pipe_folder, tmp_path / "whole")))
    recipe, parts, folder = parts_of(continuous(pipe_folder, tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        train_loop(recipe, replace(parts, reward=Interrupting(parts.reward, calls)), folder)
    train_loop(*parts_of(recipe))
    assert without_recipe(tmp_path / "cut") == without_recipe(tmp_path / "whole")


def parts_of(recipe):
    folder = Path(recipe.output)
    return recipe, build_components(recipe, folder), folder


def without_recipe(folder):
    return {name: digest for name, digest in files(folder).items() if name != "recipe.yaml"}


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(pipe_folder, tmp_path):
    recipes = {name: continuous(pipe_folder, tmp_path / name, updates=6) for name in ("whole", "killed")}
    words = ["-m", "tpdm", "train", str(write_recipe(recipes["killed"], tmp_path / "killed.yaml"))]
    train(recipes["whole"])
    metrics = tmp_path / "killed" / "metrics.jsonl"
    (child,) = start(1, words, small=True)
    while child.poll() is None and (not metrics.exists() or len(read_metrics(metrics)) < 4):
        time.sleep(0.01)
    child.send_signal(SIGKILL)
    child.communicate()
    assert child.returncode == -SIGKILL
    ((code, output),) = finish(start(1, words, small=True), timeout=300)
    assert code == 0, output
    left = {k: v for k, v in without_recipe(tmp_path / "killed").items() if not k.startswith((".", "run.json"))}
    assert left == {k: v for k, v in without_recipe(tmp_path / "whole").items() if k != "run.json"}


@pytest.mark.slow
def test_two_processes_equal_one_with_static_batches(pipe_folder, static_run, tmp_path):
    file = write_recipe(continuous(pipe_folder, tmp_path / "run"), tmp_path / "recipe.yaml")
    for code, output in finish(start(2, ["-m", "tpdm", "train", str(file)], small=True), timeout=300):
        assert code == 0, output
    assert_same_training(tmp_path / "run", static_run)
