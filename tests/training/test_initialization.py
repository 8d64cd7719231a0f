"""The TPM with which a run starts."""

from dataclasses import replace

import pytest

from tpdm.config.loader import make_recipe
from tpdm.core.errors import ConfigError
from tpdm.pipelines.probe import FeatureWidths
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.training import initialization as fresh

WIDTHS = FeatureWidths(12, 16, (4, 4))
GAMMAS = (0.97, 0.999)


def begun(monkeypatch, gamma_range=None, gamma=0.97, loaded=None, **tpm):
    """What a recipe with tpm.init_from begins with, where that TPM has ``channels`` 8 and ``loaded``."""
    policy = TimePredictionModule(
        TPMConfig(feature_channels=12, temb_channels=16, channels=8, grid=2, **(loaded or {}))
    )
    monkeypatch.setattr(fresh, "load_policy", lambda place: policy)
    recipe = make_recipe({"name": "on"})
    reward = replace(recipe.reward, gamma=gamma, gamma_range=gamma_range)
    asked = replace(recipe, tpm=replace(recipe.tpm, init_from="tpms/older", **tpm), reward=reward)
    return policy, fresh.init_policy(asked, WIDTHS)


def test_the_initial_tpm_keeps_its_shape(monkeypatch):
    for same in ({}, {"channels": 8, "grid": 2}, {"gamma": 0.9}):
        policy, found = begun(monkeypatch, **same)
        assert found is policy
    policy, found = begun(monkeypatch, gamma_range=GAMMAS, loaded={"gamma_range": GAMMAS})
    assert found is policy


@pytest.mark.parametrize(
    ("asked", "loaded", "words"),
    [
        ({"time_only": True}, {}, r"tpm.time_only is True, .* tpm.init_from=tpms/older has False"),
        ({"feature_maps": "last"}, {}, r"tpm.feature_maps is last, .* has first_last"),
        ({"channels": 16}, {}, r"tpm.channels is 16, .* has 8"),
        ({"gamma_range": GAMMAS}, {}, r"reward.gamma_range is \(0.97, 0.999\), .* has None"),
        ({}, {"gamma_range": GAMMAS}, r"reward.gamma_range is None, .* has \(0.97, 0.999\)"),
        ({"gamma_range": (0.9, 0.99)}, {"gamma_range": GAMMAS}, r"reward.gamma_range is \(0.9, 0.99\)"),
    ],
)
def test_keys_that_contradict_the_initial_tpm_are_refused(monkeypatch, asked, loaded, words):
    with pytest.raises(ConfigError, match=words) as error:
        begun(monkeypatch, loaded=loaded, **asked)
    assert "\n" not in str(error.value)
