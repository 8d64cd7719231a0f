"""A reward that fails stops the run with one error, and the run resumes after a repair."""

from dataclasses import replace

import pytest
import torch

from tests.support.gaussian_problem import DistanceReward, make_small_problem
from tpdm.core.errors import PromptError, RewardError, TpdmError, TrainingError
from tpdm.core.io import read_metrics
from tpdm.rewards.base import checked_scores
from tpdm.training.loop import train_loop


class BadReward(DistanceReward):
    """Good until call ``bad_from`` (the first is the validation of the untrained policy)."""

    def __init__(self, answer, bad_from=7):
        self.answer, self.left = answer, bad_from

    def score(self, images_B3HW, prompts):
        self.left -= 1
        scores = super().score(images_B3HW, prompts)
        return scores if self.left >= 0 else self.answer(scores)


def nan_at_3(scores):
    scores[3] = float("nan")
    return scores


def explode(scores):
    raise OSError("the server\nis gone")


BAD = {
    "nan": (nan_at_3, RewardError, r"Reward 'distance' returned nan for '(easy|hard) \d+' with seed \d+\. Every"),
    "infinite": (lambda s: s / 0, RewardError, r"Reward 'distance' returned -inf for '(easy|hard) \d+'"),
    "too few": (
        lambda s: s[1:],
        RewardError,
        r"Reward 'distance' returned a tensor of shape \(15,\) for 16 images, .* is '",
    ),
    "a column": (lambda s: s[:, None], RewardError, r"Reward 'distance' returned a tensor of shape \(16, 1\)"),
    "a list": (lambda s: s.tolist(), RewardError, r"Reward 'distance' returned a list for 16 images"),
    "exception": (explode, RewardError, r"Reward 'distance' failed on '.*'.*OSError: the server is gone"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_failing_reward_raises_one_error_and_the_run_resumes(tmp_path, case):
    answer, kind, message = BAD[case]
    recipe, parts = make_small_problem(tmp_path / "run", BadReward(answer))
    with pytest.raises(kind, match=message) as caught:
        train_loop(recipe, parts, tmp_path / "run")
    assert isinstance(caught.value, TpdmError)
    assert "\n" not in str(caught.value)
    assert [row["update"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3, 3, 4, 5]
    state = train_loop(*make_small_problem(tmp_path / "run"), tmp_path / "run")
    assert state.update == 10


def test_a_constant_reward_is_refused_before_the_first_update(tmp_path):
    recipe, parts = make_small_problem(tmp_path, BadReward(torch.zeros_like, bad_from=0))
    with pytest.raises(TrainingError, match=r"Reward 'distance' scores all 32 .* 0\. .*'easy 40'") as caught:
        train_loop(recipe, parts, tmp_path)
    assert "\n" not in str(caught.value)
    assert train_loop(*make_small_problem(tmp_path), tmp_path).update == 10


def test_equal_scores_later_are_no_error(tmp_path):
    recipe, parts = make_small_problem(tmp_path, BadReward(torch.zeros_like))
    assert train_loop(recipe, parts, tmp_path).update == 10
    last = read_metrics(tmp_path / "metrics.jsonl")[-2]
    assert (last["kind"], last["score_sd"]) == ("train", 0)


def test_a_run_resumes_after_a_failed_first_validation(tmp_path):
    recipe, parts = make_small_problem(tmp_path, BadReward(nan_at_3, bad_from=0))
    with pytest.raises(RewardError, match="returned nan"):
        train_loop(recipe, parts, tmp_path)
    assert train_loop(*make_small_problem(tmp_path), tmp_path).update == 10


def test_equal_objectives_within_every_group_are_no_error(tmp_path):
    class PromptOnly(DistanceReward):
        def score(self, images_B3HW, prompts):
            return torch.tensor([float(p.split()[1]) for p in prompts])

    recipe, parts = make_small_problem(tmp_path, PromptOnly(), reward={"step_cost": 0.0})
    before = {k: v.detach().clone() for k, v in parts.policy.named_parameters()}
    train_loop(recipe, parts, tmp_path)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert all(row["silent_groups"] == 1 for row in rows)
    assert all(torch.equal(before[k], v) for k, v in parts.policy.named_parameters())


def test_missing_validation_prompts_are_refused(tmp_path):
    recipe, parts = make_small_problem(tmp_path)
    with pytest.raises(PromptError, match="There are no validation prompts"):
        train_loop(recipe, replace(parts, validation_prompts=[]), tmp_path)


def test_scores_are_plain_tensors():
    class Half(DistanceReward):
        def score(self, images_B3HW, prompts):
            return torch.ones(2, dtype=torch.float16, requires_grad=True)

    scores = checked_scores(Half(), torch.zeros(2, 2, 2), ["a", "b"])
    assert scores.dtype == torch.float32
    assert not scores.requires_grad


def test_a_long_prompt_is_shortened():
    with pytest.raises(RewardError) as caught:
        checked_scores(BadReward(explode, 0), torch.zeros(1, 2, 2), ["many words\n" * 500])
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
