"""The identity of a run: its prompts and the recipe keys on which its result depends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tpdm.config.loader import make_recipe
from tpdm.config.recipe import Recipe
from tpdm.config.renamed import present
from tpdm.data.prompts import Prompt

# Keys that a resumed run may change. Paths and devices: the prompts are compared instead of their source. Batch sizes:
# they change memory, time and rounding only. Intervals of validations and checkpoints: they do not affect the policy.
# (The number of validation images must not change, because later objectives are compared with the best so far.)
FREE = frozenset(
    {
        "name",
        "output",
        "backbone.decode_batch",
        "backbone.device",
        "backbone.offload",
        "backbone.shard",
        "backbone.precompute_prompt_embeddings",
        "prompts.source",
        "prompts.column",
        "prompts.negative",
        "prompts.subset",
        "prompts.split",
        "reward.batch",
        "reward.device",
        "reward.timeout",
        "reward.token_env",
        "rl.rollout",
        "rl.rollout_batch",
        "rl.update_batch",
        "validation.every",
        "checkpoint.every",
        "checkpoint.keep",
        "validation.judges",
        "validation.num_images_logged",
        "trackers",
        "tracker_project",
    }
)

# Weights of format_version 1 have another meaning. Those of 2 and 3 have the same.
WEIGHTS_VERSION = 2

# Keys added later, with the value that older runs had. They are left out at that value, so that older runs resume.
LATER: dict[str, Any] = {
    "backbone.true_cfg_scale": None,
    "backbone.variant": None,
    "reward.gamma_range": None,
    "tpm.init_steps_low_gamma": None,
    "tpm.time_only": False,
    "tpm.feature_maps": "first_last",
    "tpm.velocity_change": False,
    "validation.gamma_points": 5,
}


def run_identity(
    recipe: Recipe, train_prompts: Sequence[Prompt], validation_prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """The identity of a run as dotted keys and plain values. Runs with equal identities have equal results.

    ``rl.updates`` is included only if the learning rate depends on it. A run with a constant rate can be extended.

    Args:
        recipe: Recipe of the run.
        train_prompts: Training prompts.
        validation_prompts: Validation prompts.
    """
    # Validated again, because a recipe built in Python may contain 0 where YAML gives 0.0.
    values = dict(_flat(asdict(make_recipe(asdict(recipe)))))
    free = FREE | {"rl.updates"} if recipe.optimizer.lr_schedule == "constant" else FREE
    same = {k: v for k, v in values.items() if not is_later(k, v)}
    kept = {k: v for k, v in same.items() if k not in free and not k.startswith("evaluation.")}
    return {
        **kept,
        "format_version of the TPM": WEIGHTS_VERSION,
        "training prompts": _digest(train_prompts),
        "validation prompts": _digest(validation_prompts),
    }


def under_present_names(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run that version 0.1 began, with the names that recipes have now."""
    return dict(present(key, value) for key, value in identity.items())


def is_later(key: str, value: Any) -> bool:
    """Whether a key was added later and has the value of runs before it."""
    return key in LATER and value == LATER[key]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], limit: int = 3) -> str:
    """The keys of two identities that differ, as text.

    Args:
        before: Identity of the checkpoint.
        now: Identity of the resumed run.
        limit: Number of keys to name. Default: 3.

    Returns:
        An empty string if the identities are equal.

    Example:
        >>> differences({"rl.clip": 0.2, "seed": 0}, {"rl.clip": 0.3, "seed": 0})
        'rl.clip was 0.2 and is 0.3'
    """
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    named = [f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys[:limit]]
    more = [f"{len(keys) - limit} more"] if len(keys) > limit else []
    return ", ".join([*named, *more])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, tuple) and prefix + key not in FREE:
            # One key per item, so that a message names the item. An empty tuple, as in older runs, adds no key.
            yield from _flat({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _digest(prompts: Sequence[Prompt]) -> str:
    content = json.dumps([[p.text, p.negative] for p in prompts])
    return f"{len(prompts)} with digest {hashlib.sha256(content.encode()).hexdigest()[:12]}"
