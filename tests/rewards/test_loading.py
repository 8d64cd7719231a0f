"""Load rewards by name, in recipes and in code."""

import pytest
import torch

from tests.rewards.conftest import PROMPTS
from tpdm.config.loader import dump_recipe, load_recipe, make_recipe
from tpdm.config.recipe import RewardConfig, RewardPartConfig
from tpdm.core.errors import ConfigError, RewardError
from tpdm.rewards.composite import CompositeReward
from tpdm.rewards.loading import load_judges, load_reward, read_token, recipe_reward, reward_device

PARTS = [{"name": "tinyworld", "weight": 2}, {"name": "python:math:hypot"}]


@pytest.mark.parametrize("name", ["pikscore", "Clip:x", "clip:", "hpsv2:", "", ":", "composite"])
def test_the_error_of_an_unknown_name_lists_the_valid_ones(name):
    with pytest.raises(RewardError, match=r"must be one of tinyworld, clip:FOLDER_OR_HUB_ID, pickscore\[:PLACE\]") as e:
        load_reward(name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clip", "must be clip:FOLDER_OR_HUB_ID"),
        ("tinyworld:x", "must be 'tinyworld' only"),
        ("aesthetic", r"Fetch sac\+logos\+ava1-l14-linearMSE\.pth from github"),
        ("pickscore:nobody/nothing", "no CLIP model at 'nobody/nothing'"),
        ("pickscore", "no CLIP model at 'yuvalkirstain/PickScore_v1'"),
        ("hpsv2", r"no HPS_v2\.1_compressed\.pt at 'xswu/HPSv2'"),
        ("imagereward", r"no ImageReward\.pt at 'THUDM/ImageReward'"),
    ],
)
def test_the_error_of_a_missing_file_names_its_place(name, words):
    with pytest.raises(RewardError, match=words) as e:
        load_reward(name)
    assert "\n" not in str(e.value)


def test_a_damaged_clip_folder(clip_folder, tmp_path):
    for path in clip_folder[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RewardError, match=r"found .*model\.safetensors, which is cut short") as e:
        load_reward(f"clip:{tmp_path}")
    assert "\n" not in str(e.value)


def test_the_shipped_reward_scores_all_images_at_once(images):
    reward = load_reward("tinyworld", batch=1)
    calls = []
    reward._score = lambda images, prompts: calls.append(len(prompts)) or torch.zeros(len(prompts))
    reward.score(images, PROMPTS)
    assert calls == [4]


def test_a_composite_in_a_recipe(tmp_path):
    recipe = make_recipe({"name": "a", "reward": {"name": "composite", "parts": PARTS, "offset": 3}})
    assert recipe.reward.parts == (RewardPartConfig("tinyworld", 2.0), RewardPartConfig("python:math:hypot", 1.0))
    assert recipe.reward.label == "2 x tinyworld + 1 x python:math:hypot"
    assert load_recipe(dump_recipe(recipe, tmp_path / "r.yaml")) == recipe
    reward = recipe_reward(recipe.reward)
    assert isinstance(reward, CompositeReward)
    assert [(part.key, part.weight) for part in reward.parts] == [("tinyworld", 2.0), ("python:math:hypot", 1.0)]
    override = "reward.parts=[{name: tinyworld, weight: 0.5}]"
    changed = load_recipe(tmp_path / "r.yaml", [override])
    assert changed.reward.label == "0.5 x tinyworld"


def test_a_single_reward_is_labeled_by_its_name():
    assert RewardConfig().label == "tinyworld"


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"name": "composite"}, "'composite' with 0 parts. Only name composite has parts"),
        ({"parts": PARTS}, "'tinyworld' with 2 parts. Only name composite has parts"),
        ({"name": "composite", "parts": [{"name": "a"}, {"name": "a"}], "offset": 3}, "Give each one once"),
        ({"name": "composite", "parts": [{"name": "composite"}], "offset": 3}, "different single rewards"),
        ({"name": "composite", "parts": [{"name": "a", "weight": 0}], "offset": 3}, "weight of 'a' is 0"),
        (
            {"name": "composite", "parts": [{"name": "a", "wieght": 1}], "offset": 3},
            r"reward\.parts\.0\.wieght is not a known",
        ),
        (
            {"name": "composite", "parts": PARTS},
            "offset is 0.0 with a composite.* the discount rewards more steps",
        ),
    ],
)
def test_invalid_composites_are_refused(reward, words):
    with pytest.raises(ConfigError, match=words):
        make_recipe({"name": "a", "reward": reward})
    assert make_recipe({"name": "a", "reward": {"name": "composite", "parts": PARTS, "form": "additive"}})


def test_a_token_comes_from_the_environment(monkeypatch):
    assert read_token(None) is None
    monkeypatch.setenv("TPDM_TEST_TOKEN", " secret\n")
    assert read_token("TPDM_TEST_TOKEN") == "secret"
    monkeypatch.setenv("TPDM_TEST_TOKEN", "")
    with pytest.raises(RewardError, match="Environment variable 'TPDM_TEST_TOKEN' is not set or empty"):
        recipe_reward(RewardConfig(token_env="TPDM_TEST_TOKEN"))


def test_judges_use_the_settings_of_the_reward(monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    config = RewardConfig(batch=3, timeout=600.0, token_env="JUDGE_TOKEN", device="cuda:1")
    judges = load_judges(["remote:http://127.0.0.1:1", "tinyworld"], config)
    assert list(judges) == ["remote:http://127.0.0.1:1", "tinyworld"]
    remote = judges["remote:http://127.0.0.1:1"]
    assert (remote.timeout, remote.batch) == (600.0, 3)
    assert "secret" in str(remote._headers)
    monkeypatch.setattr("tpdm.rewards.loading.resolve_device", lambda name: name)  # as on a machine with this device
    assert reward_device(config, "cuda:0") == "cuda:1"
    assert reward_device(RewardConfig(), "cuda:0") == "cuda:0"
    monkeypatch.delenv("JUDGE_TOKEN")
    assert load_judges([], config) == {}  # without judges, the token is not needed
