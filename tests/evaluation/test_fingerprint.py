"""Settings that change the results change the fingerprint, and others do not."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from tpdm.config.loader import load_recipe
from tpdm.evaluation.runner import EvalTask
from tpdm.evaluation.tasks import fingerprint
from tpdm.rewards.composite import CompositeReward, RewardPart, Standard
from tpdm.rewards.custom import FunctionReward

NUMBERS = FunctionReward("numbers", lambda images, prompts: images[:, 0, 0, 0])
ASKED = ["red ring", "blue dot", "green ring", "one circle", "two circles"]


def recipe(*changes):
    return load_recipe(Path(str(resources.files("tpdm.config") / "recipes" / "tinyworld.yaml")), changes)


def tasks(split=2, reward=NUMBERS, negatives=None):
    every = EvalTask(ASKED, list(range(5)), None, {}, reward, None, negatives=negatives)
    rest = None if negatives is None else negatives[split:]
    return every.first(split), replace(every, prompts=ASKED[split:], seeds=every.seeds[split:], negatives=rest)


def composite(mean):
    return CompositeReward((RewardPart("numbers", NUMBERS, 1.0),), {"numbers": Standard(mean, 1.0)})


@pytest.mark.parametrize(
    "change",
    [
        "backbone.decode_batch=2",
        "backbone.offload=model",
        "backbone.precompute_prompt_embeddings=true",
        "reward.batch=3",
    ],
)
def test_settings_of_memory_keep_the_rows(change):
    assert fingerprint(recipe(change), *tasks()) == fingerprint(recipe(), *tasks())


def test_another_split_of_the_same_prompts_measures_again():
    assert fingerprint(recipe(), *tasks(2)) != fingerprint(recipe(), *tasks(3))


def test_other_negative_prompts_measure_again():
    bare, blurred, dark = (fingerprint(recipe(), *tasks(negatives=n)) for n in (None, ["blur"] * 5, ["dark"] * 5))
    assert bare != blurred
    assert blurred != dark


def test_another_scale_of_a_composite_measures_again():
    one, two = (fingerprint(recipe(), *tasks(reward=composite(mean))) for mean in (0.0, 0.5))
    assert one["reward"] == two["reward"]
    assert one != two
