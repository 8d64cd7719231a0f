import pytest
import torch

from tpdm.core.errors import ConfigError
from tpdm.policies.fixed import FixedSchedule


def decide(policy, t, index, rows):
    clock = policy.observe(None, torch.tensor(t), torch.tensor(index), torch.tensor(rows))
    return policy.propose(clock, None)


def test_one_list_serves_every_image():
    decision = decide(FixedSchedule([1.0, 0.5, 0.0]), [1.0, 0.5], [0, 1], [3, 7])
    assert decision.t_next_B.tolist() == [0.5, 0.0]
    assert decision.action_B.tolist() == [0.5, 0.0]
    assert decision.logp_B.tolist() == [0.0, 0.0]


def test_one_list_per_image_of_any_length():
    policy = FixedSchedule([[1.0, 0.0], [0.8, 0.4, 0.2, 0.0]])
    assert policy.steps == 3
    assert policy.initial_times(2).tolist() == pytest.approx([1.0, 0.8])
    assert decide(policy, [0.2, 1.0], [2, 0], [1, 0]).t_next_B.tolist() == [0.0, 0.0]


def test_times_are_those_of_the_list_in_fp32():
    times = torch.linspace(1, 0, 8).tolist()
    decision = decide(FixedSchedule(times), times[:-1], list(range(7)), [0] * 7)
    assert decision.t_next_B.tolist() == times[1:]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "times is empty"),
        ([1.0], "at least two"),
        ([1.1, 0.0], r"in \(0, 1\]"),
        ([float("nan"), 0.0], r"in \(0, 1\]"),
        ([1.0, 0.5], "Append 0.0"),
        ([1.0, 0.5, 0.5, 0.0], r"times\[2\]"),
        ([1.0, float("nan"), 0.0], r"times\[1\]"),
        ([1.0, -0.5, 0.0], r"times\[2\]"),
        ([[1.0, 0.0], [0.5, 0.6, 0.0]], r"times\[1\] is 0.6"),
    ],
)
def test_bad_schedules_raise(times, message):
    with pytest.raises(ConfigError, match=message):
        FixedSchedule(times)


def test_as_many_lists_as_images():
    with pytest.raises(ConfigError, match="2 lists of times for 3 images"):
        FixedSchedule([[1.0, 0.0], [1.0, 0.0]]).initial_times(3)
