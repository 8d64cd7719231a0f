"""Recipe keys and values that had other names in version 0.1, and how recipes under those names are read.

Version 0.2 reads the old names and logs the new ones. Version 0.3 will refuse them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from tpdm.core.errors import ConfigError

logger = logging.getLogger(__name__)

KEYS: dict[str, str] = {
    "backbone.text_encoders": "backbone.precompute_prompt_embeddings",
    "tpm.start_steps": "tpm.init_steps",
    "tpm.start_shift": "tpm.init_shift",
    "tpm.fast_steps": "tpm.init_steps_low_gamma",
    "tpm.maps": "tpm.feature_maps",
    "tpm.change": "tpm.velocity_change",
    "optimizer.average": "optimizer.ema_decay",
    "rl.normalise_advantages": "rl.normalize_advantages",
    "validation.dial_points": "validation.gamma_points",
    "validation.pictures": "validation.num_images_logged",
    "evaluation.grid": "evaluation.step_grid",
    "evaluation.grid_prompts": "evaluation.step_grid_prompts",
    "evaluation.tuned": "evaluation.tuned_baseline",
    "evaluation.controls": "evaluation.baseline_cache",
    "evaluation.dial_points": "evaluation.gamma_points",
}
VALUES: dict[str, dict[str, Any]] = {  # by the key's present name
    "backbone.precompute_prompt_embeddings": {"stay": False, "leave": True},
    "tpm.layout": {"folded": "release"},
    "rl.normalize_advantages": {"dial": "gamma"},
    "rl.rollout": {"waiting": "static"},
}
_FIRST_KEYS = {new: old for old, new in KEYS.items()}
_FIRST_VALUES = {key: {new: old for old, new in values.items()} for key, values in VALUES.items()}


def present(key: str, value: Any) -> tuple[str, Any]:
    """The present name of a dotted key, and of its value.

    Example:
        >>> present("rl.normalise_advantages", "dial")
        ('rl.normalize_advantages', 'gamma')
    """
    key = KEYS.get(key, key)
    return key, VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


def first(key: str, value: Any) -> tuple[str, Any]:
    """The name of a dotted key, and of its value, in version 0.1: the inverse of ``present``.

    Hashes of recipes are taken of these names, so that results kept under a hash are still found.

    Example:
        >>> first("backbone.precompute_prompt_embeddings", True)
        ('backbone.text_encoders', 'leave')
    """
    known = _FIRST_VALUES.get(key, {})
    return _FIRST_KEYS.get(key, key), known.get(value, value) if isinstance(value, str | bool) else value


def with_present_names(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """A recipe's nested values under their present names. Logs every old name.

    Args:
        values: Sections of a recipe with their keys; what is not a section is kept.
        origin: File or override that the values are from. It begins the log line.

    Raises:
        ConfigError: A section contains a key under both names.
    """
    renamed = dict(values)
    for section, keys in values.items():
        if not isinstance(keys, Mapping):
            continue
        renamed[section] = {}
        for key, value in keys.items():
            dotted, new_value = present(f"{section}.{key}", value)
            name = dotted.rpartition(".")[2]
            if name != key and name in keys:
                raise ConfigError(
                    f"{origin}: {section}.{key} and {dotted} are the same key under two names. Give one of them. "
                    f"Keep {dotted}."
                )
            _log(origin, f"{section}.{key}", value, dotted, new_value)
            renamed[section][name] = new_value
    return renamed


def with_first_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's nested values under the names of version 0.1: the inverse of ``with_present_names``."""
    return {
        section: dict(_first_of(section, keys)) if isinstance(keys, Mapping) else keys
        for section, keys in values.items()
    }


def _first_of(section: str, keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        dotted, old_value = first(f"{section}.{key}", value)
        yield dotted.rpartition(".")[2], old_value


def _log(origin: str, key: str, value: Any, new_key: str, new_value: Any) -> None:
    if key != new_key:
        shown = "" if value == new_value else f": {str(new_value).lower()}"
        logger.warning("%s: %s is now called %s%s. Version 0.3 will refuse the old name.", origin, key, new_key, shown)
    elif value != new_value:
        logger.warning(
            "%s: the value %s of %s is now called %s. Version 0.3 will refuse the old one.",
            origin, value, key, new_value,
        )  # fmt: skip
