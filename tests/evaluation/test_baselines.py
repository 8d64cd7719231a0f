"""The baselines of a learned schedule."""

import dataclasses

import pytest
import torch

from tests.evaluation.test_runner import result_of
from tests.test_artifact import config_of
from tpdm.core.errors import ConfigError
from tpdm.evaluation import comparison
from tpdm.evaluation.baselines import mix_schedules, random_step_counts, tuned_schedules
from tpdm.evaluation.runner import EvalResult, EvalTask
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


def test_a_time_only_tpm_has_one_schedule():
    schedules = tuned_schedules(time_only())
    assert list(schedules) == [12]
    assert schedules[12].lists[0] == pytest.approx([i / 12 for i in range(12, -1, -1)], abs=1e-3)


def test_a_gamma_conditioned_time_only_tpm_has_one_schedule_per_number_of_steps():
    schedules = tuned_schedules(time_only(gamma_range=(LOW, HIGH), init_times_low_gamma=(1.0, 0.75, 0.5, 0.25, 0.0)))
    assert list(schedules) == list(range(min(schedules), max(schedules) + 1))
    assert min(schedules) <= 4
    assert max(schedules) == 12
    assert all(schedule.steps == n for n, schedule in schedules.items())


def test_a_tpm_that_reads_features_is_refused():
    policy = time_only()
    adaptive = TimePredictionModule(dataclasses.replace(policy.shape, time_only=False))
    with pytest.raises(ConfigError, match="time_only=true"):
        tuned_schedules(adaptive)


def steps_result(steps: int, scores: list[float]) -> EvalResult:
    rows = [{"policy": "p", "index": i, "steps": steps, "times": [], "score": s} for i, s in enumerate(scores)]
    return EvalResult("p", rows)


def test_a_mixture_has_the_requested_mean_steps():
    mixed = mix_schedules("both", (steps_result(8, [0.0, 1.0]), steps_result(9, [1.0, 1.0])), 8.25)
    assert mixed.column("steps").tolist() == [8.25, 8.25]
    assert mixed.column("score").tolist() == [0.25, 1.0]
    assert {row["policy"] for row in mixed.rows} == {"both"}
    same = steps_result(8, [0.5, 0.7])
    assert mix_schedules("one", (same, same), 8.0).column("score").tolist() == [0.5, 0.7]


def test_random_step_counts_permute_those_of_the_policy():
    times = [[1.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.6, 0.3, 0.0]] * 4
    grids = {n: FixedSchedule([1 - i / n for i in range(n)] + [0.0]) for n in (1, 2, 3)}
    permuted = random_step_counts(result_of(times), grids).lists
    assert sorted(len(row) for row in permuted) == sorted(len(row) for row in times)
    assert [len(row) for row in permuted] != [len(row) for row in times]


def test_ablations_do_not_depend_on_the_order_of_calls(monkeypatch):
    schedule = FixedSchedule([1.0, 0.5, 0.0])
    learned = result_of([[1.0, 0.5, 0.0], [1.0, 0.6, 0.0]])
    task = EvalTask([], [], None, {}, None, None)
    monkeypatch.setattr(comparison, "best_hand_designed", lambda *_: ("shift 1.0", schedule, {}))
    monkeypatch.setattr(comparison, "hand_designed_schedules", lambda *_: {"default": schedule})
    monkeypatch.setattr(comparison, "evaluate_policy", lambda *_, **__: learned)
    compared = comparison.BaselineComparison(task, task, None, None, None, None)
    assert len(compared.ablation_baselines(learned)) == 4
    assert compared.chosen == {2: "shift 1.0"}
