import pytest
import torch

from tests.support.policies import LookingPolicy
from tpdm.core.errors import ConfigError, TpdmError
from tpdm.core.solvers import SOLVERS
from tpdm.core.stepper import Stepper
from tpdm.core.types import Decision, Features
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

EULER = SOLVERS["euler"]


class Halving(LookingPolicy):
    """A policy that halves the time and reads no features."""

    reads_features = False
    share = 0.5

    def observe(self, features, t_B, index_B, row_B, change_B=None):
        return FixedSchedule([1.0, 0.0]).observe(features, t_B, index_B, row_B)

    def propose(self, observation, seeds):
        share = torch.full_like(observation.t_B, self.share)
        return Decision(share * observation.t_B, share, -share)


def run(stepper, x):
    """Run to the end with the velocity of a straight path to x_0 = 2, for which Euler is exact."""
    noise = x.clone()
    while not stepper.done:
        x = stepper.advance(x, noise - 2.0, None)
    return x


def features(rows):
    maps = torch.randn(rows, 4, 2, 2)
    return Features(maps, maps + 1, torch.randn(rows, 4))


def test_fixed_schedules_ignore_stop_below():
    lists = [[1.0, 0.0], [1.0, 0.6, 0.001, 0.0005, 0.0], [0.9, 0.2, 0.0]]
    stepper = Stepper(FixedSchedule(lists), EULER, images=3, stop_below=0.5)
    x = run(stepper, torch.randn(3, 2, 4, 4))
    assert stepper.steps == [1, 4, 2]
    assert stepper.index_B.tolist() == [1, 4, 2]
    assert not stepper.active_B.any()
    assert stepper.times == [torch.tensor(row).tolist() for row in lists]
    torch.testing.assert_close(x[:2], torch.full((2, 2, 4, 4), 2.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_batch_equals_its_images_alone(solver):
    lists = [[1.0, 0.5, 0.0], [1.0, 0.7, 0.4, 0.1, 0.0], [1.0, 0.9, 0.0]]
    x = torch.randn(3, 5)

    def sample(lists, x):
        stepper = Stepper(FixedSchedule(lists), SOLVERS[solver], images=len(x))
        while not stepper.done:
            x = stepper.advance(x, torch.sin(x) + stepper.t_B[:, None] * x, None)
        return x

    alone = torch.cat([sample(lists[i : i + 1], x[i : i + 1]) for i in range(3)])
    assert torch.equal(sample(lists, x), alone)


def test_finished_images_ignore_their_predictions():
    stepper = Stepper(FixedSchedule([[1.0, 0.0], [1.0, 0.5, 0.0]]), EULER, images=2)
    x = stepper.advance(torch.randn(2, 3), torch.randn(2, 3), None)
    prediction = torch.tensor([[float("nan")] * 3, [1.0] * 3])
    x_next = stepper.advance(x, prediction, None)
    assert torch.equal(x_next[0], x[0])
    assert not torch.equal(x_next[1], x[1])


def test_stop_below_and_cap():
    stepper = Stepper(Halving(), EULER, images=1, stop_below=0.2, record=True)
    run(stepper, torch.randn(1, 3))
    assert stepper.times == [[1.0, 0.5, 0.25, 0.0]]
    assert all(step.counts for step in stepper.trajectories()[0].steps)

    stepper = Stepper(Halving(), EULER, images=1, max_steps=2, stop_below=0.01, record=True)
    run(stepper, torch.randn(1, 3))
    (trajectory,) = stepper.trajectories()
    assert trajectory.times == stepper.times[0] == [1.0, 0.5, 0.0]
    assert [step.counts for step in trajectory.steps] == [True, False]
    assert [step.action for step in trajectory.steps] == [0.5, 0.5]


class Creeping(Halving):
    """A policy with short steps: each lowers t by one percent."""

    share = 0.99


def test_near_the_cap_images_end_in_equal_steps():
    stepper = Stepper(Creeping(), EULER, images=1, max_steps=12, stop_below=0.01)
    run(stepper, torch.randn(1, 3))
    (times,) = stepper.times
    t = 0.99**9  # nine steps of the policy, then three of the cap
    assert times == pytest.approx([0.99**i for i in range(10)] + [t * 2 / 3, t / 3, 0.0])
    assert times == torch.tensor(times, dtype=torch.float32).tolist()  # the bits that the solver got


def test_recording_overrules_only_the_last_step():
    stepper = Stepper(Creeping(), EULER, images=1, max_steps=12, stop_below=0.01, record=True)
    run(stepper, torch.randn(1, 3))
    (trajectory,) = stepper.trajectories()
    assert trajectory.times == pytest.approx([0.99**i for i in range(12)] + [0.0])
    assert [step.counts for step in trajectory.steps] == [True] * 11 + [False]


def test_an_image_that_ends_before_the_cap_is_not_overruled():
    stepper = Stepper(Halving(), EULER, images=1, max_steps=12, stop_below=0.001)
    run(stepper, torch.randn(1, 3))
    assert stepper.times == [[0.5**i for i in range(10)] + [0.0]]


def test_a_fixed_schedule_is_followed_to_its_end():
    times = [1.0, 0.95, 0.9, 0.8, 0.0]
    stepper = Stepper(FixedSchedule([times]), EULER, images=1, max_steps=4)
    run(stepper, torch.randn(1, 3))
    assert stepper.times == [pytest.approx(times)]


def test_a_stop_at_the_cap_still_counts():
    stepper = Stepper(Halving(), EULER, images=1, max_steps=2, stop_below=0.3, record=True)
    run(stepper, torch.randn(1, 3))
    assert [step.counts for step in stepper.trajectories()[0].steps] == [True, True]


def test_policies_read_only_active_rows_and_records_are_per_image():
    stepper = Stepper(LookingPolicy(), EULER, images=3, max_steps=4, seeds=[5, 6, 5], record=True, stop_below=0.35)
    x, shown = torch.randn(3, 2), []
    while not stepper.done:
        shown.append((stepper.active_rows, features(len(stepper.active_rows))))
        x = stepper.advance(x, x, shown[-1][1])
    trajectories = stepper.trajectories()
    assert [len(t.steps) for t in trajectories] == stepper.steps
    assert trajectories[0].times == trajectories[2].times != trajectories[1].times  # equal seeds, equal decisions
    for b, trajectory in enumerate(trajectories):
        for i, step in enumerate(trajectory.steps):
            rows, seen = shown[i]
            expected = seen.last_BDHW[rows.index(b)].mean((1, 2))
            assert torch.equal(step.observation.map_BCHW[0, :, 0, 0], expected)
            assert (step.observation.row_B.item(), step.observation.index_B.item()) == (b, i)
            assert step.t == step.observation.t_B.item() == trajectory.times[i]
            assert step.logp == -step.action


def test_seeds_stay_with_their_images_when_others_finish():
    shown = []

    class Watching(Halving):
        def propose(self, observation, seeds):
            shown.append(seeds)
            first_B = observation.row_B == 0
            ratio_B = torch.where(first_B, 0.1, 0.5)
            return Decision(ratio_B * observation.t_B, ratio_B, -ratio_B)

    run(Stepper(Watching(), EULER, images=3, seeds=[5, 6, 7], stop_below=0.3), torch.randn(3, 2))
    assert shown == [[5, 6, 7], [6, 7]]


def test_nan_is_named_by_image_and_time():
    stepper = Stepper(FixedSchedule([1.0, 0.5, 0.0]), EULER, images=2)
    x = stepper.advance(torch.zeros(2, 3), torch.zeros(2, 3), None)
    with pytest.raises(TpdmError, match=r"NaN .* prediction for image 1 at t = 0.5 \(step 2\)"):
        stepper.advance(x, torch.tensor([[0.0] * 3, [0.0, float("nan"), 0.0]]), None)

    stepper, seen = Stepper(LookingPolicy(), EULER, images=2), features(2)
    seen.first_BDHW[0, 0, 0, 0] = float("inf")
    with pytest.raises(TpdmError, match="features for image 0 at t = 1"):
        stepper.advance(torch.zeros(2, 3), torch.zeros(2, 3), seen)


def test_a_broken_policy_is_named():
    class Broken(Halving):
        def propose(self, observation, seeds):
            nan = torch.full_like(observation.t_B, float("nan"))
            return Decision(nan, nan, nan)

    with pytest.raises(TpdmError, match=r"next time nan \(log-probability nan\) for image 0"):
        Stepper(Broken(), EULER, images=1).advance(torch.zeros(1, 3), torch.zeros(1, 3), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "at least 1"),
        ({"max_steps": 0}, "at least 1"),
        ({"stop_below": 1.0}, "stop_below is 1"),
        ({"seeds": [1]}, "seeds has 1 numbers for 2 images"),
        ({"t_start": 0.0}, "t_start is 0"),
        ({"t_start": 0.5}, "Leave t_start out"),
        ({"max_steps": 2}, "Pass max_steps=3"),
    ],
)
def test_bad_options_raise(options, message):
    options = {"images": 2, **options}
    with pytest.raises(ConfigError, match=message):
        Stepper(FixedSchedule([1.0, 0.5, 0.2, 0.0]), EULER, **options)


def test_a_later_start():
    stepper = Stepper(Halving(), EULER, images=1, t_start=0.5, stop_below=0.3)
    run(stepper, torch.randn(1, 3))
    assert stepper.times == [[0.5, 0.0]]


def test_misuse_raises():
    stepper = Stepper(FixedSchedule([1.0, 0.0]), EULER, images=1)
    with pytest.raises(TpdmError, match="same shape with 1 rows"):
        stepper.advance(torch.zeros(2, 3), torch.zeros(2, 3), None)
    stepper.advance(torch.zeros(1, 3), torch.zeros(1, 3), None)
    with pytest.raises(TpdmError, match="Stop when done"):
        stepper.advance(torch.zeros(1, 3), torch.zeros(1, 3), None)
    with pytest.raises(ConfigError, match="record=True"):
        stepper.trajectories()
    with pytest.raises(TpdmError, match=r"features have 2 rows\. They must have 1"):
        Stepper(LookingPolicy(), EULER, images=1).advance(torch.zeros(1, 3), torch.zeros(1, 3), features(2))


def test_recorded_decisions_use_the_stored_observation_and_others_fp32():
    policy = TimePredictionModule(TPMConfig(4, 4, channels=8, grid=2))
    seen = features(2)

    def first_action(record):
        stepper = Stepper(policy, EULER, images=2, record=record)
        stepper.advance(torch.randn(2, 3), torch.randn(2, 3), seen)
        return stepper, torch.tensor([times[1] for times in stepper.times])

    clock = (torch.ones(2), torch.zeros(2).long(), torch.arange(2))
    observation = policy.observe(seen, *clock)
    recorded, kept_B = first_action(record=True)
    _, full_B = first_action(record=False)
    assert recorded.trajectories()[0].steps[0].observation.map_BCHW.dtype == torch.float16
    torch.testing.assert_close(full_B, policy.propose(observation, None).t_next_B.detach(), rtol=0, atol=0)
    torch.testing.assert_close(
        kept_B, policy.propose(policy.quantize_for_storage(observation), None).t_next_B, rtol=0, atol=0
    )
    assert not torch.equal(kept_B, full_B)
