"""What a run may not change half-way: the prompts, and the part of the recipe that its result follows from."""

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

# Free to change between an interruption and going on. Places and machines: the prompts are compared, not where
# their file lies. Sizes of batches: they move memory and time, and the result by rounding alone. When to look and
# to save: neither touches the policy. (How many images a validation has is not free: the best objective so far
# is compared with later ones.)
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

# Weights of a TPM in format_version 1 mean something else; those of 2 and 3 mean the same.
WEIGHTS_VERSION = 2

# Keys that came later, with the value that runs from before had: left out at that value, so that those runs go on.
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
    """Dotted keys and plain values; two runs with equal ones go the same way.

    ``rl.updates`` is part of it only where the learning rate depends on it: a run with a constant rate may be
    made longer.
    """
    # Through the checks once more: a recipe built in Python may hold 0 where YAML gives 0.0.
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
    """Whether a key has the value at which earlier runs were made, which did not have it."""
    return key in LATER and value == LATER[key]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], most: int = 3) -> str:
    """The first keys that differ, in words: "rl.clip was 0.2 and is 0.3"; empty where none does."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    named = [f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys[:most]]
    more = [f"{len(keys) - most} more"] if len(keys) > most else []
    return ", ".join([*named, *more])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, tuple) and prefix + key not in FREE:
            # As keys of their own, so that a message names the part; and an empty list, older runs' none, is nothing.
            yield from _flat({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _digest(prompts: Sequence[Prompt]) -> str:
    content = json.dumps([[p.text, p.negative] for p in prompts])
    return f"{len(prompts)} with digest {hashlib.sha256(content.encode()).hexdigest()[:12]}"
