"""The opponents of a learned schedule."""

import dataclasses

import pytest
import torch

from tests.evaluation.test_runner import result_of
from tests.test_artifact import config_of
from tpdm.core.errors import ConfigError
from tpdm.evaluation.baselines import mix_schedules, random_step_counts, tuned_schedules
from tpdm.evaluation.runner import EvalResult
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

LOW, HIGH = 0.9, 0.999


def time_only(**change) -> TimePredictionModule:
    shape = TPMConfig(
        6,
        5,
        channels=8,
        grid=2,
        time_only=True,
        init_times=tuple(i / 12 for i in range(12, -1, -1)),
        **change,
    )
    policy = TimePredictionModule(shape)
    with torch.no_grad():
        policy.fc2.weight.zero_()
    policy.artifact = config_of(shape, gamma=0.99, max_steps=30, stop_below=0.05)
    return policy.eval()


def test_a_tpm_that_sees_only_the_time_is_one_schedule():
    found = tuned_schedules(time_only())
    assert list(found) == [12]
    assert found[12].lists[0] == pytest.approx([i / 12 for i in range(12, -1, -1)], abs=1e-3)


def test_its_dial_gives_one_for_every_number_of_steps_in_reach():
    found = tuned_schedules(time_only(gamma_range=(LOW, HIGH), init_times_low_gamma=(1.0, 0.75, 0.5, 0.25, 0.0)))
    assert list(found) == list(range(min(found), max(found) + 1))
    assert min(found) <= 4
    assert max(found) == 12
    assert all(schedule.steps == n for n, schedule in found.items())


def test_a_tpm_that_looks_is_no_fixed_schedule():
    policy = time_only()
    looks = TimePredictionModule(dataclasses.replace(policy.shape, time_only=False))
    with pytest.raises(ConfigError, match="time_only=true"):
        tuned_schedules(looks)


def steps_result(steps: int, scores: list[float]) -> EvalResult:
    rows = [{"policy": "p", "index": i, "steps": steps, "times": [], "score": s} for i, s in enumerate(scores)]
    return EvalResult("p", rows)


def test_a_blend_has_the_steps_that_were_asked_for():
    mixed = mix_schedules("both", (steps_result(8, [0.0, 1.0]), steps_result(9, [1.0, 1.0])), 8.25)
    assert mixed.column("steps").tolist() == [8.25, 8.25]
    assert mixed.column("score").tolist() == [0.25, 1.0]
    assert {row["policy"] for row in mixed.rows} == {"both"}
    same = steps_result(8, [0.5, 0.7])
    assert mix_schedules("one", (same, same), 8.0).column("score").tolist() == [0.5, 0.7]


def test_dealt_steps_are_the_policys_own_on_other_images():
    times = [[1.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.6, 0.3, 0.0]] * 4
    grids = {n: FixedSchedule([1 - i / n for i in range(n)] + [0.0]) for n in (1, 2, 3)}
    dealt = random_step_counts(result_of(times), grids).lists
    assert sorted(len(row) for row in dealt) == sorted(len(row) for row in times)
    assert [len(row) for row in dealt] != [len(row) for row in times]
