"""Keys of a recipe that are given and have no effect beside others.

They are said and not refused: one list of overrides often serves several recipes, and a run that was made with such a
key must stay readable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import reduce
from typing import Any

from tpdm.config.recipe import Recipe

_LOG = logging.getLogger(__name__)
When = Callable[[Recipe], bool]


def _additive(recipe: Recipe) -> bool:
    return recipe.reward.form == "additive"


def _no_remote(recipe: Recipe) -> bool:
    names = [recipe.reward.name, *(part.name for part in recipe.reward.parts)]
    names += [*recipe.validation.judges, *recipe.evaluation.judges]
    return not any(name.startswith("remote:") for name in names)


def _goes_on(recipe: Recipe) -> bool:
    return recipe.tpm.init_from is not None


def _first_schedule(recipe: Recipe) -> bool:
    return recipe.tpm.start_steps is not None and not _goes_on(recipe)


def _time_only(recipe: Recipe) -> bool:
    return recipe.tpm.time_only and not _goes_on(recipe)


def _no_project(recipe: Recipe) -> bool:
    return not {"wandb", "trackio"} & set(recipe.trackers)


def _no_dial(recipe: Recipe) -> bool:
    return recipe.reward.gamma_range is None


def _batch_for_dial(recipe: Recipe) -> bool:
    return _no_dial(recipe) and recipe.rl.normalise_advantages == "dial"


_START = ("init_alpha", "init_beta", "start_steps", "start_shift", "fast_steps")
# (key, where it has no effect, why). Keys at their defaults are taken for not given.
_IDLE: tuple[tuple[str, When, str], ...] = (
    ("reward.gamma", _additive, "reward.form additive is priced by reward.step_cost"),
    ("reward.offset", _additive, "reward.form additive needs none"),
    ("reward.timeout", _no_remote, "no reward and no judge is remote"),
    ("reward.token_env", _no_remote, "no reward and no judge is remote"),
    ("tpm.init_alpha", _first_schedule, "tpm.start_steps says what the untrained TPM does"),
    ("tpm.grid", lambda recipe: recipe.tpm.layout == "folded", "tpm.layout folded has a grid of its own"),
    ("tpm.change", _time_only, "tpm.time_only sees nothing but the time"),
    ("tpm.maps", _time_only, "tpm.time_only sees nothing but the time"),
    ("tpm.features", _time_only, "tpm.time_only sees nothing but the time"),
    *((f"tpm.{key}", _goes_on, "the TPM of tpm.init_from has its start behind it") for key in _START),
    ("rl.normalise_advantages", _batch_for_dial, "without reward.gamma_range it is that of batch"),
    ("validation.dial_points", _no_dial, "there is no dial without reward.gamma_range"),
    ("evaluation.dial_points", _no_dial, "there is no dial without reward.gamma_range"),
    ("tracker_project", _no_project, "neither wandb nor trackio is among trackers"),
)


def idle_keys(recipe: Recipe) -> list[str]:
    """One sentence for each key that is given and has no effect."""
    plain = Recipe(name=recipe.name)
    return [
        f"{key} {_value(recipe, key)} has no effect: {why}"
        for key, when, why in _IDLE
        if _value(recipe, key) != _value(plain, key) and when(recipe)
    ]


def tell_idle(recipe: Recipe, section: str = "") -> None:
    """A warning in the log for each of them whose name begins so."""
    for sentence in idle_keys(recipe):
        if sentence.startswith(section):
            _LOG.warning("%s", sentence)


def _value(recipe: Recipe, key: str) -> Any:
    return reduce(getattr, key.split("."), recipe)
