"""The average of the weights: its formula, its users, and its value after an interruption."""

from pathlib import Path

import pytest
import torch

from tests.support.gaussian_problem import make_small_problem
from tests.support.interrupted import InterruptingReward, files, run
from tpdm.core.io import load_tensors
from tpdm.policies.tpm import TimePredictionModule
from tpdm.training.ema import EMA


def policy_at(value: float) -> TimePredictionModule:
    policy = make_small_problem(Path())[1].policy
    with torch.no_grad():
        for weight in policy.parameters():
            weight.fill_(value)
    return policy


def test_the_average_is_exponential_with_a_faster_start():
    average = EMA(policy_at(0.0), decay=0.5)
    expected = 0.0
    for updates, value in enumerate((1.0, 3.0, -2.0, 5.0, 4.0, 1.0, 0.5, 2.0, 9.0, 1.0), start=1):
        average.update(policy_at(value), updates)
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * value
        assert float(average.weights["fc2.bias"][0]) == pytest.approx(expected, rel=1e-6)
    assert min(0.5, 11 / 20) == 0.5  # the last update was past the warm-up


def test_without_decay_the_average_is_the_policy():
    average = EMA(policy_at(7.0), decay=0.0)
    policy = policy_at(0.1)
    average.update(policy, 1)
    assert all(torch.equal(average.weights[k], v) for k, v in policy.state_dict().items())


def test_the_policy_gets_its_weights_back_after_an_error():
    policy = policy_at(1.0)
    average = EMA(policy_at(2.0), decay=0.9)

    def interrupted():
        with average.average_parameters(policy):
            assert float(policy.fc2.bias.detach()[0]) == 2.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert float(policy.fc2.bias.detach()[0]) == 1.0


def test_artifacts_contain_the_average_also_after_an_interruption(tmp_path):
    averaged = {"ema_decay": 0.8}
    run(tmp_path / "whole", optimizer=averaged)
    newest = tmp_path / "whole" / "checkpoints" / "update-000010"
    artifact = load_tensors(tmp_path / "whole" / "last" / "model.safetensors")[0]
    average = load_tensors(newest / "average.safetensors")[0]
    policy = load_tensors(newest / "policy.safetensors")[0]
    assert all(torch.equal(artifact[k], average[k]) for k in average)
    assert not torch.equal(policy["fc2.weight"], average["fc2.weight"])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", InterruptingReward(11), optimizer=averaged)
    run(tmp_path / "cut", optimizer=averaged)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
