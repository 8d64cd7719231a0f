"""Summaries of policies compared with a mixture, and of several images per prompt."""

import numpy as np
import pytest

from tpdm.evaluation.baselines import mix_schedules
from tpdm.evaluation.runner import EvalResult
from tpdm.evaluation.summary import point_summary


def result(name, scores, steps, samples=1):
    numbers = np.broadcast_to(steps, len(scores))
    return EvalResult(
        name,
        [
            {
                "policy": name,
                "index": i,
                "prompt": f"p{i // samples}",
                "steps": int(n),
                "score": float(s),
                "seconds": 1.0,
            }
            for i, (s, n) in enumerate(zip(scores, numbers, strict=True))
        ],
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_mixture_itself_wins_half_against_the_mixture(share):
    generator = np.random.default_rng(0)
    eight = generator.normal(0.8, 0.05, 2_000)
    nine = eight + generator.exponential(0.02, 2_000)  # the ninth step helps every image
    picked = generator.permutation(2_000) < 2_000 * share
    mine = result("tpdm", np.where(picked, nine, eight), np.where(picked, 9, 8))
    control = mix_schedules("equal steps", [result("a", eight, 8), result("b", nine, 9)], mine.column("steps").mean())
    found = point_summary(mine, [control])["paired"]["equal steps"]
    assert found["reward"][0] == pytest.approx(0, abs=1e-3)
    assert found["win_rate"][1] < 0.5 < found["win_rate"][2]
    # A mixture beside itself loses what one of the two differs by where the other was drawn.
    odds = share * (1 - share)
    drawn = np.concatenate([eight - nine, nine - eight, 0 * eight])
    weights = np.repeat([odds, odds, 1 - 2 * odds], 2_000)
    order = np.argsort(drawn)
    expected = drawn[order][np.searchsorted(np.cumsum(weights[order]), 0.01 * 2_000)]
    assert found["worst"][1] <= expected <= found["worst"][2]


def test_images_of_one_prompt_are_resampled_together():
    generator = np.random.default_rng(1)
    gain = np.repeat(generator.normal(0, 1, 64), 4)
    zero = result("static-8", np.zeros(256), 8, samples=4)
    found = point_summary(result("tpdm", gain, 8, samples=4), [zero])["paired"]["static-8"]
    alone = point_summary(result("tpdm", gain[::4], 8), [result("static-8", np.zeros(64), 8)])["paired"]["static-8"]
    for measure in ("reward", "win_rate", "worst"):
        assert found[measure] == pytest.approx(alone[measure], abs=0.08)
    assert found["reward"] == pytest.approx(alone["reward"])
