"""What the rows of an evaluation depend on: a change of it makes them anew, and of nothing else does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpdm.artefact import WEIGHTS
from tpdm.evals.compare import Task
from tpdm.recipe import Recipe
from tpdm.rewards.base import Reward
from tpdm.rewards.composite import CompositeReward
from tpdm.train.identity import FREE, is_later


def fingerprint(recipe: Recipe, tuning: Task, test: Task) -> dict[str, Any]:
    """Of every policy's rows.

    Places and sizes that move memory and time alone (``tpdm.train.identity.FREE``) are no part of it: an evaluation
    that ran out of memory goes on with another ``backbone.offload``.

    Args:
        recipe: that is evaluated.
        tuning: what controls are chosen on.
        test: what is compared.
    """
    backbone = {
        key: value
        for key, value in asdict(recipe.backbone).items()
        if f"backbone.{key}" not in FREE and not is_later(f"backbone.{key}", value)
    }
    return {
        "backbone": backbone,
        "sampling": asdict(recipe.sampling),
        "reward": recipe.reward.label,
        "reward statistics": _standards(test.reward),
        "judges": list(recipe.evaluation.judges),
        "tuning prompts": _asked(tuning),
        "prompts": _asked(test),
    }


def learned_fingerprint(recipe: Recipe, which: str = "best") -> dict[str, Any]:
    """What the rows of learned schedules depend on besides: the ``best`` TPM of the recipe, or the ``last``."""
    tuned = recipe.evaluation.tuned
    return {
        "tpm": _digest((Path(recipe.output) / which / WEIGHTS).read_bytes()),
        "tuned": None if tuned is None else _digest((Path(tuned) / WEIGHTS).read_bytes()),
    }


def _standards(reward: Reward) -> dict[str, Any] | None:
    """Of a composite: each training standardises on its own untrained policy, so that equal names have other scales."""
    if not isinstance(reward, CompositeReward) or reward.standards is None:
        return None
    return {key: asdict(standard) for key, standard in reward.standards.items()}


def _asked(task: Task) -> str:
    return _digest(json.dumps([list(task.prompts), list(task.negatives or []), list(task.seeds)]).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
