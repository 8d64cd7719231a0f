"""A device is there, or one sentence says that it is not."""

import pytest

from tpdm.config.recipe import RewardConfig
from tpdm.core.device import choose_device, resolve_device
from tpdm.core.errors import ConfigError
from tpdm.rewards.loading import reward_device


def test_auto_is_the_best_one_and_others_stay_what_they_are():
    assert resolve_device("auto") == choose_device()
    assert resolve_device("cpu") == "cpu"
    assert reward_device(RewardConfig(device="auto"), "cuda:7") == "cuda:7"  # the backbone's has been looked at


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", ""])
def test_one_that_is_not_there(name):
    with pytest.raises(ConfigError, match=rf"device is '{name}', which cannot be used here \(.+\)\. It must be"):
        resolve_device(name)
    with pytest.raises(ConfigError, match="device is"):
        reward_device(RewardConfig(device=name or "nowhere"), "cpu")
