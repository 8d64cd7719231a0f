"""Custom rewards: a Python function as a reward."""

import sys

import pytest
import torch

from tpdm.core.errors import RewardError
from tpdm.rewards.base import checked_scores
from tpdm.rewards.custom import FunctionReward
from tpdm.rewards.loading import load_reward

MODULE = """
VALUE = 3

def red(images, prompts):
    assert images.dtype.is_floating_point and images.shape[0] == len(prompts) and isinstance(prompts, list)
    return images[:, 0].mean((1, 2)).requires_grad_()

def wrong(images, prompts):
    raise KeyError(prompts[0])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with modules that are removed from sys.modules afterwards."""
    (tmp_path / "own_reward_here.py").write_text(MODULE)
    (tmp_path / "broken_reward_here.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own_reward_here", "broken_reward_here"):
        sys.modules.pop(name, None)


def test_a_module_in_the_current_folder(folder):
    reward = load_reward("python:own_reward_here:red")
    images = torch.rand(3, 3, 4, 4, dtype=torch.float64)
    assert reward.name == "python:own_reward_here:red"
    scores = checked_scores(reward, images, ("a", "b", "c"))
    assert torch.allclose(scores, images[:, 0].mean((1, 2)).float())


def test_a_call_has_at_most_batch_images(folder):
    sizes = []
    images = torch.rand(5, 3, 2, 4)
    counted = FunctionReward(
        "counted", lambda images, prompts: sizes.append(len(images)) or images[:, 0, 0, 0], batch=2
    )
    scores = checked_scores(counted, images, list("abcde"))
    assert sizes == [2, 2, 1]
    assert torch.equal(scores, images[:, 0, 0, 0])
    alone = FunctionReward("alone", lambda images, prompts: images[0, 0, 0], batch=2)
    with pytest.raises(
        RewardError,
        match=r"Reward 'alone' returned a tensor of shape \(4,\) for 2 images, .* 'a'\. It must return .*\(2,\)",
    ):
        checked_scores(alone, images, list("abcde"))
    assert load_reward("python:own_reward_here:red", batch=2).batch == 2


def test_the_error_names_the_function_and_the_prompt(folder):
    with pytest.raises(RewardError, match=r"Reward 'python:own_reward_here:wrong' failed on 'a'.*KeyError"):
        checked_scores(load_reward("python:own_reward_here:wrong"), torch.rand(1, 3, 4, 4), ["a"])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("own_reward_here", "must be python:package.module:function"),
        ("own_reward_here:", "must be python:package.module:function"),
        (":red", "must be python:package.module:function"),
        ("own_reward_here:blue", "cannot be imported .AttributeError"),
        ("own_reward_here:VALUE", "a int and not a function"),
        ("nowhere_at_all:red", "cannot be imported .ModuleNotFoundError"),
        ("broken_reward_here:red", "cannot be imported .RuntimeError: two lines"),
        (".relative:red", "cannot be imported"),
    ],
)
def test_invalid_functions_are_refused(folder, place, words):
    with pytest.raises(RewardError, match=words) as caught:
        load_reward(f"python:{place}")
    assert "\n" not in str(caught.value)


def test_a_function_in_place_does_not_change_the_images():
    images = torch.rand(4, 3, 2, 2)
    before = images.clone()
    reward = FunctionReward("in place", lambda x, prompts: x.sub_(0.5).mean((1, 2, 3)), batch=2)
    checked_scores(reward, images, list("abcd"))
    assert torch.equal(images, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_refused_whatever_the_score(value):
    images = torch.rand(3, 3, 2, 2)
    images[1, 2, 0, 1] = value
    blind = FunctionReward("blind", lambda x, prompts: torch.zeros(len(x)))
    with pytest.raises(RewardError, match=r"The image of 'b' with seed 8 contains NaN .*backbone\.dtype"):
        checked_scores(blind, images, list("abc"), [7, 8, 9])
