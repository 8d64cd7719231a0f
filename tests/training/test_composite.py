"""Training on a composite reward: logged parts, statistics of the run, and interruptions."""

import json
import math

import pytest
import torch

from tests.support.gaussian_problem import DistanceReward, make_small_problem
from tests.support.interrupted import InterruptingReward, files
from tpdm.core.errors import RewardError
from tpdm.core.io import read_metrics
from tpdm.rewards.composite import CompositeReward, RewardPart, run_reward
from tpdm.training.loop import train_loop
from tpdm.training.run_identity import differences, run_identity


class Place(DistanceReward):
    """Mean of the image, in a unit of its own."""

    name = "place"

    def score(self, images_B3HW, prompts):
        return 100 * images_B3HW[:, 0, 0]


def mixture(distance=None):
    parts = RewardPart("distance", distance or DistanceReward(), 1.0), RewardPart("place", Place(), -0.5)
    return CompositeReward(parts)


def run(folder, distance=None, **sections):
    recipe, parts = make_small_problem(folder, mixture(distance), **sections)
    return train_loop(recipe, parts, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_all_parts_are_logged_in_their_own_unit(whole):
    rows = read_metrics(whole / "metrics.jsonl")
    assert len(rows) > 10
    standards = json.loads((whole / "reward-statistics.json").read_text())
    assert standards["place"]["sd"] > 10 * standards["distance"]["sd"]
    for row in rows:
        assert set(row["parts"]) == {"distance", "place"}
        means = {
            key: (part["mean"] - standards[key]["mean"]) / standards[key]["sd"] for key, part in row["parts"].items()
        }
        assert math.isclose(row["score_mean"], means["distance"] - 0.5 * means["place"], abs_tol=1e-4)


def test_other_rewards_log_no_parts(tmp_path):
    train_loop(*make_small_problem(tmp_path), tmp_path)
    assert not any("parts" in row for row in read_metrics(tmp_path / "metrics.jsonl"))
    assert not (tmp_path / "reward-statistics.json").exists()


# Calls of a part: calibration, first validation, then one an update and one a validation.
@pytest.mark.parametrize("calls", [0, 1, 2, 7, 9])
def test_a_resumed_run_equals_an_uninterrupted_run(whole, tmp_path, calls):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, InterruptingReward(calls))
    assert run(tmp_path).update == 10
    assert files(tmp_path) == files(whole)


def test_a_resumed_run_reads_its_own_statistics(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, InterruptingReward(8))
    path = tmp_path / "reward-statistics.json"
    kept = path.read_text()
    path.unlink()
    with pytest.raises(RewardError, match=r"reward-statistics\.json cannot be read .* It must contain the statistics"):
        run(tmp_path)
    path.write_text(kept)
    assert run(tmp_path).update == 10
    assert path.read_text() == kept


def test_a_new_run_ignores_the_statistics_of_an_older_run(whole, tmp_path):
    other = {"mean": 0, "sd": 9}
    (tmp_path / "reward-statistics.json").write_text(json.dumps({"distance": other, "place": other}))
    run(tmp_path, rl={"updates": 1})
    assert (tmp_path / "reward-statistics.json").read_text() == (whole / "reward-statistics.json").read_text()


def test_an_error_names_the_part_that_failed(tmp_path):
    class Broken(DistanceReward):
        name = "broken"

        def score(self, images_B3HW, prompts):
            return torch.full((len(prompts),), float("nan"))

    with pytest.raises(RewardError, match=r"Reward 'broken' returned nan for '(easy|hard) \d+'"):
        run(tmp_path, Broken())
    assert not (tmp_path / "reward-statistics.json").exists()


def test_an_evaluation_uses_the_statistics_of_the_run(whole):
    standards = run_reward(mixture(), whole).standards
    assert {key: vars(standard) for key, standard in standards.items()} == json.loads(
        (whole / "reward-statistics.json").read_text()
    )


def test_checkpoints_without_composite_keys_still_load(tmp_path):
    recipe, parts = make_small_problem(tmp_path)
    identity = run_identity(recipe, parts.train_prompts, parts.validation_prompts)
    old = {"reward.name", "reward.form", "reward.gamma", "reward.offset", "reward.step_cost"}
    assert {key for key in identity if key.startswith("reward.")} == old


def test_changed_weights_are_refused(tmp_path):
    def identity(weight):
        reward = {"name": "composite", "parts": [{"name": "a"}, {"name": "b", "weight": weight}]}
        recipe, parts = make_small_problem(tmp_path, reward=reward)
        return run_identity(recipe, parts.train_prompts, parts.validation_prompts)

    assert differences(identity(1), identity(2)) == "reward.parts.1.weight was 1.0 and is 2.0"
    # As it comes back from a checkpoint.
    assert differences(json.loads(json.dumps(identity(1))), identity(1)) == ""
