"""Baselines from a policy's own schedules, difficulty, and the rows of an evaluation."""

from itertools import pairwise

import numpy as np
import pytest

import tpdm.evaluation.runner as compare
from tpdm.core.io import to_uint8
from tpdm.evaluation.baselines import difficulty, mean_schedule, shuffled_schedules
from tpdm.evaluation.runner import EvalResult
from tpdm.pipelines.attach import AdaptiveOutput


def result_of(times: list[list[float]], scores: list[float] | None = None) -> EvalResult:
    rows = [
        {"policy": "p", "index": i, "times": t, "steps": len(t) - 1, "score": (scores or [0.0] * len(times))[i]}
        for i, t in enumerate(times)
    ]
    return EvalResult("p", rows)


def test_the_mean_of_equal_schedules_is_that_schedule():
    times = [1.0, 0.7, 0.2, 0.0]
    assert mean_schedule(result_of([times] * 5)).lists == [pytest.approx(times)]


def test_the_mean_schedule_has_the_mean_number_of_steps():
    mean = mean_schedule(result_of([[1.0, 0.0], [1.0, 0.75, 0.5, 0.25, 0.1, 0.0], [1.0, 0.5, 0.0]])).lists[0]
    assert len(mean) - 1 == 3  # (1 + 5 + 2) / 3 rounded
    assert mean[0] == 1.0
    assert mean[-1] == 0.0
    assert all(a > b for a, b in pairwise(mean))


def test_shuffled_schedules_are_the_same_schedules():
    times = [[1.0, x, 0.0] for x in (0.1, 0.2, 0.3, 0.4, 0.5)]
    shuffled = shuffled_schedules(result_of(times)).lists
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, (np.float32(t).tolist() for t in times))) or sorted(
        map(tuple, shuffled)
    ) == sorted(map(tuple, times))
    assert shuffled != times


def test_difficulty_is_the_step_count_where_the_score_stays_near_its_best():
    # Rows: N = 2, 4, 8. The second image touches its best early and loses it again; the third needs everything.
    scores = {2: [0.9, 1.0, 0.0], 4: [1.0, 0.2, 0.5], 8: [1.0, 1.0, 1.0]}
    results = [result_of([[1.0, 0.0]] * 3, s) for s in scores.values()]
    needed, margin = difficulty(results, grid=(2, 4, 8), share=0.1)
    assert margin == pytest.approx(0.1 * (0.1 + 0.8 + 1.0) / 3)
    assert needed.tolist() == [4, 8, 8]


def test_bytes_round_and_clip():
    import torch

    images = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_rows_have_parts_only_for_a_composite(monkeypatch):
    import torch

    from tpdm.policies.fixed import FixedSchedule
    from tpdm.rewards.composite import CompositeReward, RewardPart, Standard
    from tpdm.sampling.base import SampleBatch

    class Mean:
        name = "mean"

        def score(self, images_B3HW, prompts):
            return images_B3HW.mean((1, 2, 3))

    class Sampler:
        in_flight = 2

        def __init__(self, *arguments, decode_batch):
            pass

        def __call__(self, *asked, **options):
            return generated

    images = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    generated = SampleBatch(images, [1, 1], [[1.0, 0.0]] * 2, None)
    monkeypatch.setattr(compare, "attach", lambda *arguments, **options: None)
    monkeypatch.setattr(compare, "PipelineSampler", Sampler)
    reward = CompositeReward((RewardPart("mean", Mean(), 2.0),), {"mean": Standard(0.5, 0.25)})
    task = compare.EvalTask(["a", "b"], [0, 1], None, {}, reward, None)
    rows = compare.evaluate_policy("p", FixedSchedule([1.0, 0.0]), task).rows
    assert [row["parts"] for row in rows] == [{"mean": 0.25}, {"mean": 0.75}]
    assert [row["score"] for row in rows] == [-2.0, 2.0]
    plain = compare.evaluate_policy(
        "p", FixedSchedule([1.0, 0.0]), compare.EvalTask(["a", "b"], [0, 1], None, {}, Mean(), None)
    )
    assert all("parts" not in row for row in plain.rows)


def test_a_batch_that_ran_out_of_memory_stays_smaller(monkeypatch):

    import torch

    from tpdm.policies.fixed import FixedSchedule
    from tpdm.sampling.samplers import PipelineSampler

    sizes, sliced = [], []

    def pipeline(prompt, seeds, **call):
        sizes.append(len(prompt))
        if len(prompt) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        images = torch.tensor(seeds).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 10
        return AdaptiveOutput(images, [1] * len(seeds), [[1.0, 0.0]] * len(seeds), None, nfe_rows=len(seeds))

    def sampler(*arguments, decode_batch):
        sliced.append(decode_batch)
        return PipelineSampler(*arguments)

    class Red:
        name = "red"

        def score(self, images_B3HW, prompts):
            return images_B3HW[:, 0, 0, 0]

    monkeypatch.setattr(compare, "attach", lambda *arguments, **options: pipeline)
    monkeypatch.setattr(compare, "PipelineSampler", sampler)
    task = compare.EvalTask(["a"] * 7, list(range(7)), None, {}, Red(), None, batch=4, decode_batch=5)
    rows = compare.evaluate_policy("p", FixedSchedule([1.0, 0.0]), task).rows
    assert [row["score"] for row in rows] == pytest.approx([i / 10 for i in range(7)])
    assert sizes == [4, 2, 2, 2, 1]
    assert set(sliced) == {5}


def test_first_keeps_all_images_of_its_prompts():
    task = compare.EvalTask(["a", "a", "b", "b", "c", "c"], [*range(6)], None, {}, None, None, negatives=[*"xxyyzz"])
    first = task.first(2)
    assert (first.prompts, first.seeds, first.negatives) == (["a", "a", "b", "b"], [0, 1, 2, 3], [*"xxyy"])
    assert compare.EvalTask(["a", "a", "b"], [0, 1, 2], None, {}, None, None).first(2).seeds == [0, 1]


def test_an_oracle_is_not_reported_beyond_its_schedules():
    from tpdm.evaluation.evaluate import oracle_gap

    grid = [result_of([[1.0] * n + [0.0]] * 3, [0.1 * n, 0.2, 0.3]) for n in (3, 5)]
    for steps, known in ((2, False), (3, True), (4, True), (5, True), (6, False)):
        assert (oracle_gap(grid, result_of([[1.0] * steps + [0.0]] * 3)) is not None) == known


def test_judges_with_the_same_name_have_their_own_columns():
    from types import SimpleNamespace

    from tpdm.evaluation.tasks import _labeled

    named = {"clip:one/m": "CLIP score (m)", "clip:two/m": "CLIP score (m)", "pickscore": "PickScore"}
    labeled = _labeled({name: SimpleNamespace(name=shown) for name, shown in named.items()})
    assert [*labeled] == ["clip:one/m", "clip:two/m", "PickScore"]
