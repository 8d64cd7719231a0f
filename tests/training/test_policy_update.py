"""The policy update: independence of micro-batches, and the effect of each term of the loss."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.support.gaussian_problem import GaussianSampler, make_small_problem, prompts
from tpdm.config.recipe import OptimizerConfig, RlConfig
from tpdm.core.errors import TrainingError
from tpdm.core.io import read_metrics
from tpdm.policies import beta
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.base import SampleRequest
from tpdm.training.loop import train_loop
from tpdm.training.policy_update import learning_rate, make_optimizer, update_policy
from tpdm.training.rollout import RolloutBuffer, make_rollout_buffer

RL = RlConfig(epochs=1, update_batch=10_000)


def roll_out(policy: TimePredictionModule, images: int = 12) -> RolloutBuffer:
    texts = [p.text for p in prompts(images)]
    generated = GaussianSampler(policy)(SampleRequest(texts, range(images), range(images), record=True))
    return make_rollout_buffer(generated.trajectories)


def fresh_policy() -> TimePredictionModule:
    return make_small_problem(Path())[1].policy


def update(
    policy: TimePredictionModule, replay: RolloutBuffer, rl: RlConfig, advantage_B=None, reference=None, lr=1e-3
):
    if advantage_B is None:
        advantage_B = torch.linspace(-1, 1, replay.trajectories)
    optimizer = make_optimizer(policy, OptimizerConfig(lr=lr))
    return update_policy(policy, optimizer, replay, advantage_B, rl, 1.0, reference)


def weights(policy: TimePredictionModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def gradient(policy: TimePredictionModule) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("ratio", ["trajectory", "decision"])
@pytest.mark.parametrize("update_batch", [1, 7, 20])
def test_micro_batches_do_not_change_the_update(ratio, update_batch):
    whole, parts = fresh_policy(), fresh_policy()
    replay, reference = roll_out(whole), TimePredictionModule(whole.shape, seed=9)
    rl = replace(RL, ratio=ratio, entropy_weight=0.1, kl_weight=0.1)
    seen = update(whole, replay, rl, reference=reference)
    seen_parts = update(parts, replay, replace(rl, update_batch=update_batch), reference=reference)
    torch.testing.assert_close(gradient(parts), gradient(whole), rtol=1e-4, atol=1e-6)
    for name, value in vars(seen).items():
        assert getattr(seen_parts, name) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_part_of_a_buffer_contains_only_its_trajectories():
    replay = roll_out(fresh_policy())
    cuts = [0, 1, 5, 12]
    parts = [replay.part(first, last) for first, last in pairwise(cuts)]
    assert torch.equal(torch.cat([part.logp_T for part in parts]), replay.logp_T)
    for part, (first, last) in zip(parts, pairwise(cuts), strict=True):
        assert part.trajectories == last - first
        rows = (replay.segment_T >= first) & (replay.segment_T < last)
        assert torch.equal(part.segment_T, replay.segment_T[rows] - first)
        assert torch.equal(part.observation.t_B, replay.observation.t_B[rows])
        assert part.action_T.untyped_storage().data_ptr() == replay.action_T.untyped_storage().data_ptr()


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_a_buffer_orders_decisions_by_trajectory_and_then_by_step(batch):
    texts = [p.text for p in prompts(12)]
    generated = GaussianSampler(fresh_policy(), batch)(SampleRequest(texts, range(12), range(12), record=True))
    steps = [(n, s) for n, t in enumerate(generated.trajectories) for s in t.steps if s.counts]
    buffer = make_rollout_buffer(generated.trajectories)
    assert buffer.segment_T.tolist() == [n for n, _ in steps]
    assert torch.equal(buffer.action_T, torch.tensor([s.action for _, s in steps]))
    assert torch.equal(buffer.logp_T, torch.tensor([s.logp for _, s in steps]))
    for name in ("map_BCHW", "temb_BE", "t_B", "index_B", "row_B"):
        expected = torch.cat([getattr(s.observation, name) for _, s in steps])
        assert torch.equal(getattr(buffer.observation, name), expected)


def test_a_buffer_keeps_the_recorded_batches_without_a_copy():
    texts = [p.text for p in prompts(12)]
    generated = GaussianSampler(fresh_policy())(SampleRequest(texts, range(12), range(12), record=True))
    buffer = make_rollout_buffer(generated.trajectories)
    recorded = {id(s.batch) for t in generated.trajectories for s in t.steps}
    assert {id(batch) for batch in buffer.batches} <= recorded
    assert len(recorded) == max(generated.steps)  # one batch a step, whatever the number of images


def test_rollout_batch_does_not_change_the_run(tmp_path):
    states = []
    for batch in (1000, 5):
        folder = tmp_path / str(batch)
        recipe, parts = make_small_problem(folder, rl={"updates": 3, "rollout_batch": batch}, optimizer={"lr": 1e-4})
        train_loop(recipe, parts, folder)
        states.append((weights(parts.policy), read_metrics(folder / "metrics.jsonl")))
    (weights_1, rows_1), (weights_2, rows_2) = states
    torch.testing.assert_close(weights_2, weights_1, rtol=1e-3, atol=1e-5)
    assert [r["steps_histogram"] for r in rows_1] == [r["steps_histogram"] for r in rows_2]
    assert [r["score_mean"] for r in rows_1] == pytest.approx([r["score_mean"] for r in rows_2], rel=1e-4)


@pytest.mark.parametrize("ratio", ["trajectory", "decision"])
def test_the_ratio_is_one_before_the_first_step(ratio):
    policy = fresh_policy()
    seen = update(policy, roll_out(policy), replace(RL, ratio=ratio))
    assert seen.ratio_deviation < 1e-5
    assert seen.clip_fraction == 0
    assert seen.approx_kl < 1e-8


@pytest.mark.parametrize("ratio", ["trajectory", "decision"])
def test_trajectories_with_positive_advantages_become_likelier(ratio):
    policy = fresh_policy()
    replay = roll_out(policy)
    advantage_B = torch.where(torch.arange(12) < 6, 1.0, -1.0)
    seen = update(policy, replay, replace(RL, ratio=ratio, epochs=4), advantage_B)
    gain_T = policy.evaluate(replay.observation, replay.action_T)[0].detach() - replay.logp_T
    gain_B = torch.zeros(12).index_add(0, replay.segment_T, gain_T)
    assert gain_B[:6].mean() > gain_B[6:].mean() + 0.01
    assert seen.approx_kl > 0
    assert seen.ratio_max > 1


def test_the_two_ratios_differ():
    first, second = fresh_policy(), fresh_policy()
    replay = roll_out(first)
    update(first, replay, replace(RL, ratio="trajectory"))
    update(second, replay, replace(RL, ratio="decision"))
    assert not torch.allclose(gradient(first), gradient(second), rtol=0.1)


def test_entropy_weight_widens_the_distribution():
    policy = fresh_policy()
    replay = roll_out(policy)
    before = policy.evaluate(replay.observation, replay.action_T)[1].mean()
    update(policy, replay, replace(RL, entropy_weight=1.0, epochs=5), torch.zeros(12), lr=1e-2)
    assert policy.evaluate(replay.observation, replay.action_T)[1].mean() > before + 0.005


def test_zero_advantages_change_no_weight():
    policy = fresh_policy()
    before = weights(policy)
    update(policy, roll_out(policy), RL, torch.zeros(12))
    assert torch.equal(weights(policy), before)


def test_kl_weight_pulls_back_to_the_initial_policy():
    policy, reference = fresh_policy(), fresh_policy()
    with torch.no_grad():
        policy.fc2.bias += torch.tensor([0.5, -0.5])
    replay = roll_out(policy)

    def distance():
        initial = beta.beta_params(*reference(replay.observation))
        now = policy.evaluate(replay.observation, replay.action_T)[2]
        return float(beta.kl(now, initial).mean().detach())

    before = distance()
    seen = update(policy, replay, replace(RL, kl_weight=1.0, epochs=5), torch.zeros(12), reference)
    assert distance() < before - 0.01
    assert seen.kl_to_initial > 0


def test_a_trajectory_without_decisions_is_allowed():
    policy = fresh_policy()
    replay = roll_out(policy)
    rows = (replay.segment_T != 3).nonzero().flatten()
    one_silent = replace(
        replay,
        **{name: getattr(replay, name)[rows] for name in ("batch_T", "row_T", "action_T", "logp_T", "segment_T")},
    )
    other = fresh_policy()
    update(policy, one_silent, replace(RL, update_batch=1))
    update(other, one_silent, RL)
    torch.testing.assert_close(gradient(policy), gradient(other), rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_refused():
    policy = fresh_policy()
    with pytest.raises(TrainingError, match=r"The gradient norm of the update is nan\. .*must be finite.*Lower"):
        update(policy, roll_out(policy), RL, torch.full((12,), float("nan")))


def test_a_rollout_without_decisions_is_refused(tmp_path):
    policy = fresh_policy()
    generated = GaussianSampler(policy)(SampleRequest(["hard 1"], [1], [1], record=True))
    steps = tuple(replace(s, counts=False) for s in generated.trajectories[0].steps)
    with pytest.raises(TrainingError, match=r"The cap overruled every decision of 1 .*Raise sampling\.max_steps"):
        make_rollout_buffer([replace(generated.trajectories[0], steps=steps)])


def test_learning_rates():
    def rates(**options):
        config = OptimizerConfig(lr=1.0, **options)
        return [learning_rate(config, n, 10) for n in range(10)]

    assert rates() == [1.0] * 10
    assert rates(warmup_updates=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    linear = rates(lr_schedule="linear")
    assert linear[0] == 1.0
    assert linear[9] == pytest.approx(0.1)
    cosine = rates(lr_schedule="cosine", warmup_updates=2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)
    assert 0 < cosine[9] < 0.05
