"""``tpdm eval`` end to end on the embedded model, very small: a dial, a tuned fixed schedule, an interruption."""

import dataclasses
import json

import pytest

from tpdm.config import make_recipe
from tpdm.evals import compare
from tpdm.evals.run import evaluate
from tpdm.train.run import train
from tpdm.types import ConfigError


def small(folder, name, **tpm):
    return make_recipe(
        {
            "name": name,
            "output": str(folder / name),
            "backbone": {"name_or_path": "tinyworld", "guidance_scale": 1.0},
            "tpm": {"channels": 8, "grid": 2, "start_steps": 8, "fast_steps": 3, **tpm},
            "sampling": {"max_steps": 12, "stop_below": 0.05},
            "reward": {"name": "tinyworld", "gamma": 0.99, "gamma_range": [0.9, 0.999]},
            "prompts": {"source": "tinyworld", "limit": 300},
            "rl": {"updates": 1, "prompts_per_update": 2, "samples_per_prompt": 2, "rollout_batch": 4},
            "validation": {"every": 1, "prompts": 2, "dial_points": 2},
            "evaluation": {
                "prompts": 4,
                "tuning_prompts": 2,
                "grid": [2, 3],
                "grid_prompts": 2,
                "dial_points": 2,
                "judges": ["tinyworld"],
                "tuned": str(folder / "fixed" / "best"),
            },
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    train(small(folder, "fixed", time_only=True))
    train(small(folder, "first"))
    return folder


def without_clock(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_the_same(trained, monkeypatch):
    recipe = small(trained, "first")
    evaluate(recipe, trained / "whole")
    made = []
    judged = compare._judged

    def counted(*args):
        made.append(args[0])
        return judged(*args)

    def killed(*args):
        if len(made) == 9:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(compare, "_judged", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, trained / "again")
    first = list(made)
    monkeypatch.setattr(compare, "_judged", counted)
    evaluate(recipe, trained / "again")
    second = made[len(first) :]
    monkeypatch.setattr(compare, "_judged", judged)
    made.clear()
    evaluate(recipe, trained / "whole")
    assert not made  # a finished one measures nothing again
    assert len(second) > len(first)
    whole, again = (
        [json.loads(line) for line in (trained / name / "results.jsonl").read_text().splitlines()]
        for name in ("whole", "again")
    )
    assert without_clock(whole) == without_clock(again)
    assert_summary(json.loads((trained / "again" / "summary.json").read_text()))
    page = (trained / "again" / "report.html").read_text()
    for heading in ("Where the gain comes from", "The dial"):
        assert heading in page


def assert_summary(summary):
    names = [row["name"] for row in summary["rows"]]
    assert names[0] == "tpdm"
    equal = ["default, equal steps", "best grid, equal steps", "tuned by the same training, equal steps"]
    assert set(equal) <= set(names)
    assert {"error control", "shuffled schedules of tpdm", "mean schedule of tpdm"} <= set(names)
    steps = {row["name"]: row["steps_mean"] for row in summary["rows"]}
    for name in [*equal, "mean schedule of tpdm", "shuffled schedules of tpdm"]:
        assert steps[name] == pytest.approx(steps["tpdm"])
    oracle = summary["oracle"]
    assert oracle["oracle"] >= oracle["fixed"] - 1e-9
    assert oracle["images"] == 2
    assert len(summary["points"]) == 2
    for point in summary["points"]:
        assert {"default, equal steps", "best grid, equal steps"} <= set(point["paired"])
        assert point["paired"]["best grid, equal steps"].keys() >= {"reward", "accuracy", "win_rate", "worst"}


@pytest.mark.slow
def test_a_tuned_schedule_that_looks_at_images_is_refused(trained):
    recipe = small(trained, "first")
    wrong = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, tuned=str(trained / "first" / "best"))
    )
    with pytest.raises(ConfigError, match="time_only=true"):
        evaluate(wrong, trained / "refused")
