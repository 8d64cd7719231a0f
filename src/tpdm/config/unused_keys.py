"""Keys of a recipe that are set and have no effect together with the others.

They are logged, not refused: one list of overrides often serves several recipes, and recipes of older runs must remain
readable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import reduce
from typing import Any

from tpdm.config.recipe import Recipe

logger = logging.getLogger(__name__)
When = Callable[[Recipe], bool]


def _additive(recipe: Recipe) -> bool:
    return recipe.reward.form == "additive"


def _no_remote(recipe: Recipe) -> bool:
    names = [recipe.reward.name, *(part.name for part in recipe.reward.parts)]
    names += [*recipe.validation.judges, *recipe.evaluation.judges]
    return not any(name.startswith("remote:") for name in names)


def _continues(recipe: Recipe) -> bool:
    return recipe.tpm.init_from is not None


def _initial_schedule(recipe: Recipe) -> bool:
    return recipe.tpm.init_steps is not None and not _continues(recipe)


def _time_only(recipe: Recipe) -> bool:
    return recipe.tpm.time_only and not _continues(recipe)


def _no_project(recipe: Recipe) -> bool:
    return not {"wandb", "trackio"} & set(recipe.trackers)


def _no_range(recipe: Recipe) -> bool:
    return recipe.reward.gamma_range is None


def _gamma_without_range(recipe: Recipe) -> bool:
    return _no_range(recipe) and recipe.rl.normalize_advantages == "gamma"


_INIT = ("init_alpha", "init_beta", "init_steps", "init_shift", "init_steps_low_gamma")
# (key, when it has no effect, why). Keys at their defaults count as not set.
_UNUSED: tuple[tuple[str, When, str], ...] = (
    ("reward.gamma", _additive, "reward.form additive uses reward.step_cost"),
    ("reward.offset", _additive, "reward.form additive needs none"),
    ("reward.timeout", _no_remote, "no reward and no judge is remote"),
    ("reward.token_env", _no_remote, "no reward and no judge is remote"),
    ("tpm.init_alpha", _initial_schedule, "tpm.init_steps defines the untrained TPM"),
    ("tpm.grid", lambda recipe: recipe.tpm.layout == "release", "tpm.layout release has a fixed grid"),
    ("tpm.velocity_change", _time_only, "tpm.time_only reads only the time"),
    ("tpm.feature_maps", _time_only, "tpm.time_only reads only the time"),
    ("tpm.features", _time_only, "tpm.time_only reads only the time"),
    *((f"tpm.{key}", _continues, "the TPM of tpm.init_from is already initialized") for key in _INIT),
    ("rl.normalize_advantages", _gamma_without_range, "without reward.gamma_range it is the same as batch"),
    ("validation.gamma_points", _no_range, "reward.gamma_range is not set"),
    ("evaluation.gamma_points", _no_range, "reward.gamma_range is not set"),
    ("tracker_project", _no_project, "trackers contains neither wandb nor trackio"),
)


def unused_keys(recipe: Recipe) -> list[str]:
    """One sentence for each key that is set and has no effect.

    Example:
        >>> from tpdm.config.loader import make_recipe
        >>> unused_keys(make_recipe({"name": "a", "validation": {"gamma_points": 3}}))
        ['validation.gamma_points 3 has no effect: reward.gamma_range is not set']
    """
    defaults = Recipe(name=recipe.name)
    return [
        f"{key} {_value(recipe, key)} has no effect: {why}"
        for key, when, why in _UNUSED
        if _value(recipe, key) != _value(defaults, key) and when(recipe)
    ]


def warn_unused_keys(recipe: Recipe, section: str = "") -> None:
    """Logs a warning for each unused key whose name begins with ``section``."""
    for sentence in unused_keys(recipe):
        if sentence.startswith(section):
            logger.warning("%s", sentence)


def _value(recipe: Recipe, key: str) -> Any:
    return reduce(getattr, key.split("."), recipe)
