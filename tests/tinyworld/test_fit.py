"""The training loop of tinyworld's parts is deterministic and resumes to the bit."""

import json

import pytest
import torch
from torch import nn

from tpdm.tinyworld.build.fit import FitPlan, fit, learning_rate


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def loss_of(net: nn.Module, interrupt_at: int | None = None):
    def loss_fn(step: int) -> torch.Tensor:
        if step == interrupt_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (net(x).squeeze(1) - x.sum(1)).square().mean()

    return loss_fn


@pytest.mark.parametrize("muon", [False, True])
def test_resumed_is_uninterrupted(tmp_path, muon):
    plan = FitPlan(steps=60, lr=1e-2, ema=0.9, muon=muon, save_every=10)
    straight, broken, resumed = make_net(), make_net(), make_net()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fit("net", straight, loss_of(straight), plan, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fit("net", broken, loss_of(broken, interrupt_at=37), plan, tmp_path / "b")
    fit("net", resumed, loss_of(resumed), plan, tmp_path / "b")
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_and_logs(tmp_path):
    net = make_net()
    before = loss_of(net)(0).item()
    fit("net", net, loss_of(net), FitPlan(steps=200, lr=1e-2), tmp_path)
    assert loss_of(net)(0).item() < 0.2 * before
    rows = [json.loads(line) for line in (tmp_path / "net.log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [50, 100, 150, 200]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_loss_that_is_nan_raises(tmp_path):
    net = make_net()
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        fit("net", net, lambda _: net(torch.full((1, 4), torch.nan)).mean(), FitPlan(steps=5, lr=1e-2), tmp_path)


def test_the_rate_warms_up_and_falls_to_zero():
    plan = FitPlan(steps=100, lr=1.0)
    rates = [learning_rate(plan, s) for s in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.5)
    assert rates[-1] < 0.001
