"""Short memory makes batches smaller, logs it once, and changes no result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.gaussian_problem import make_small_problem
from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.core.errors import TrainingError
from tpdm.core.io import read_metrics
from tpdm.pipelines.attach import AdaptiveOutput, attach
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.batch_size import AdaptiveBatchSize
from tpdm.sampling.samplers import PipelineSampler
from tpdm.training.loop import train_loop


def batch_size_messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "tpdm.sampling.batch_size"]


def fake(holds):
    """A pipeline with one step that fits ``holds`` images, and the sizes of its calls."""
    sizes = []

    def pipeline(**call):
        n = len(call["prompt"])
        sizes.append(n)
        if n > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        images = torch.tensor(call["seeds"]).view(n, 1, 1, 1).expand(n, 3, 2, 2)
        return AdaptiveOutput(images, [1] * n, [[1.0, 0.0]] * n, None, nfe_rows=n)

    return pipeline, sizes


@settings(max_examples=40)
@given(images=st.integers(1, 20), batch=st.integers(1, 20), holds=st.integers(1, 20))
def test_every_image_is_made_once_in_order(images, batch, holds):
    pipeline, sizes = fake(holds)
    sampler = PipelineSampler(pipeline, batch, {})  # type: ignore[arg-type]
    generated = sampler(SampleRequest(["a"] * images, range(images)))
    assert generated.images_B3HW[:, 0, 0, 0].tolist() == list(range(images))
    assert sum(n for n in sizes if n <= holds) == images
    assert len([n for n in sizes if n > holds]) <= max(1, batch).bit_length()


def test_a_smaller_batch_is_logged_once_and_kept(caplog):
    pipeline, sizes = fake(5)
    sampler = PipelineSampler(pipeline, 8, {})  # type: ignore[arg-type]
    for _ in range(2):
        sampler(SampleRequest(["a"] * 8, range(8)))
    assert sizes == [8, 4, 4, 4, 4]
    (line,) = batch_size_messages(caplog)
    assert line == "Out of memory with 8 images at once. The size is now 4. Set rl.rollout_batch=4 to start with it."


def test_one_image_that_does_not_fit_raises_one_error():
    pipeline, _ = fake(0)
    with pytest.raises(TrainingError, match=r"rl\.rollout_batch=1\. .*backbone\.height and width"):
        PipelineSampler(pipeline, 3, {})(SampleRequest(["a"] * 3, [0, 1, 2]))  # type: ignore[arg-type]


def test_a_smaller_batch_restores_the_pipeline_and_gives_the_same_images(tmp_path, monkeypatch):
    pipe = make_tiny_sd3(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32}
    policy = FixedSchedule([1.0, 0.5, 0.0])
    request = SampleRequest(["a", "b", "c", "d"], [1, 2, 3, 4])
    whole = PipelineSampler(attach(pipe, policy), 4, call)(request)
    scheduler, forward = pipe.scheduler, pipe.transformer.forward

    def limited(hidden_states, *args, **options):
        if len(hidden_states) > 4:  # two rows an image, under guidance
            raise torch.OutOfMemoryError("out of memory")
        return forward(hidden_states, *args, **options)

    monkeypatch.setattr(pipe.transformer, "forward", limited)
    sampler = PipelineSampler(attach(pipe, policy), 4, call)
    again = sampler(request)
    assert pipe.scheduler is scheduler
    assert again.steps == whole.steps
    torch.testing.assert_close(again.images_B3HW, whole.images_B3HW, rtol=0, atol=1e-4)


def test_smaller_micro_batches_give_the_same_update(tmp_path, monkeypatch, caplog):
    recipe, parts = make_small_problem(tmp_path / "whole", rl={"updates": 3})
    train_loop(recipe, parts, tmp_path / "whole")
    evaluate, largest = TimePredictionModule.evaluate, []

    def limited(self, observation, action_B):
        if len(action_B) > 20:
            raise torch.OutOfMemoryError("out of memory")
        largest.append(len(action_B))
        return evaluate(self, observation, action_B)

    monkeypatch.setattr(TimePredictionModule, "evaluate", limited)
    recipe, short = make_small_problem(tmp_path / "short", rl={"updates": 3})
    train_loop(recipe, short, tmp_path / "short")
    assert largest
    lines = batch_size_messages(caplog)
    assert lines
    assert len(set(lines)) == len(lines)
    assert all("rl.update_batch=" in line for line in lines)
    rows = [
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
        for name in ("whole", "short")
    ]
    assert [row["steps_histogram"] for row in rows[0]] == [row["steps_histogram"] for row in rows[1]]
    for one, other in zip(parts.policy.parameters(), short.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_trajectory_that_does_not_fit_raises_one_error(tmp_path, monkeypatch):
    def full(self, observation, action_B):
        raise torch.OutOfMemoryError("out of memory")

    recipe, parts = make_small_problem(tmp_path)
    monkeypatch.setattr(TimePredictionModule, "evaluate", full)
    with pytest.raises(TrainingError, match=r"Memory is too small for rl\.update_batch=1"):
        train_loop(recipe, parts, tmp_path)


def test_halving_starts_from_the_size_that_was_tried():
    batch_size = AdaptiveBatchSize(100, "rl.update_batch", "decisions")
    batch_size.halve(37)  # all that were left
    assert batch_size.size == 18
