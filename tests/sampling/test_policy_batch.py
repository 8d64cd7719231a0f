"""Decisions of a batch equal those of single evaluations."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tpdm.core.errors import BackboneError
from tpdm.core.types import Observation
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.sampling.batching.policy import PolicyBatch


class CountingPredictor(TimePredictionModule):
    def __init__(self):
        super().__init__(TPMConfig(6, 5, channels=8, grid=2))
        torch.nn.init.normal_(self.fc2.weight)
        self.rows = []

    def propose(self, observation, seeds):
        self.rows.append(len(observation.t_B))
        return super().propose(observation, seeds)


def observation(b, bad=False):
    generator = torch.Generator().manual_seed(b)
    maps = torch.randn(1, 12, 2, 2, generator=generator) * (float("nan") if bad else 1.0)
    t_B = torch.tensor([0.9 - 0.1 * b])
    return Observation(maps, torch.randn(1, 5, generator=generator), t_B, torch.tensor([b]), torch.tensor([0]))


def propose_all(batch, policy, runs):
    with ThreadPoolExecutor(len(runs)) as pool:
        futures = [pool.submit(batch.propose, policy, seen, seeds) for seen, seeds in runs]
    return futures


@pytest.mark.parametrize("sampled", [False, True])
def test_one_evaluation_gives_all_decisions(sampled):
    policy, batch = CountingPredictor(), PolicyBatch(4)
    seeds = [[10 + b] if sampled else None for b in range(4)]
    futures = propose_all(batch, policy, [(observation(b), seeds[b]) for b in range(4)])
    assert policy.rows == [4]
    for b, future in enumerate(futures):
        alone, together = policy.propose(observation(b), seeds[b]), future.result()
        torch.testing.assert_close(together.t_next_B, alone.t_next_B, atol=1e-6, rtol=0)
        torch.testing.assert_close(together.logp_B, alone.logp_B, atol=1e-4, rtol=0)


def test_runs_that_skip_are_not_waited_for():
    policy, batch = CountingPredictor(), PolicyBatch(4)
    batch.skip()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batch.propose, policy, observation(b), None) for b in range(2)]
        assert not any(future.done() for future in futures)
        batch.skip()
        assert all(future.result(10).t_next_B > 0 for future in futures)
    assert policy.rows == [2]


def test_requests_with_different_signatures_are_evaluated_separately():
    first, second, batch = CountingPredictor(), CountingPredictor(), PolicyBatch(3)
    with ThreadPoolExecutor(3) as pool:
        requests = [(first, None), (second, None), (first, [1])]
        futures = [pool.submit(batch.propose, policy, observation(0), seeds) for policy, seeds in requests]
        assert all(future.result(10) for future in futures)
    assert (first.rows, second.rows) == ([1, 1], [1])


def test_an_image_with_an_error_fails_alone():
    policy = CountingPredictor()
    good, bad, other = propose_all(
        PolicyBatch(3), policy, [(observation(0), None), (observation(1, bad=True), None), (observation(2), None)]
    )
    with pytest.raises(BackboneError, match="NaN"):
        bad.result()
    assert good.result().t_next_B > 0
    assert other.result().t_next_B > 0


def test_the_tensors_of_a_failed_evaluation_are_freed_before_the_retry(failed_tensors):
    class Failing(CountingPredictor):
        def propose(self, observation, seeds):
            failed_tensors.check_freed()
            activation = failed_tensors.add(torch.zeros(1000))
            if len(observation.t_B) > 1:
                raise torch.OutOfMemoryError(f"out of memory with {len(activation)}")
            return super().propose(observation, seeds)

    futures = propose_all(PolicyBatch(2), Failing(), [(observation(b), None) for b in range(2)])
    assert all(future.result().t_next_B > 0 for future in futures)
    failed_tensors.check_freed()
