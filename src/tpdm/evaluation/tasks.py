"""What the rows of an evaluation depend on: a change of it makes them anew, and of nothing else does."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tpdm.config.loader import load_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.device import resolve_device
from tpdm.core.errors import ConfigError, PromptError
from tpdm.core.seeding import Stream, derive_seed
from tpdm.data.prompts import load_source, split_by_hash
from tpdm.evaluation.runner import EvalTask
from tpdm.pipelines.loading.load import load_backbone, pipeline_arguments
from tpdm.policies.pretrained import WEIGHTS
from tpdm.rewards.base import Reward
from tpdm.rewards.composite import CompositeReward, run_reward
from tpdm.rewards.loading import load_judges, recipe_reward, reward_device
from tpdm.tinyworld.scorer import TinyworldJudge
from tpdm.training.build import check_negatives, choose_prompts
from tpdm.training.run_identity import FREE, differences, is_later, run_identity


def fingerprint(recipe: Recipe, tuning: EvalTask, test: EvalTask) -> dict[str, Any]:
    """Of every policy's rows.

    Places and sizes that change memory and time alone (``tpdm.training.run_identity.FREE``) are no part of it: an
    evaluation that ran out of memory goes on with another ``backbone.offload``.

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
    tuned = recipe.evaluation.tuned_baseline
    return {
        "tpm": _digest((Path(recipe.output) / which / WEIGHTS).read_bytes()),
        "tuned": None if tuned is None else _digest((Path(tuned) / WEIGHTS).read_bytes()),
    }


def _standards(reward: Reward) -> dict[str, Any] | None:
    """Of a composite: each training standardises on its own untrained policy, so that equal names have other scales."""
    if not isinstance(reward, CompositeReward) or reward.standards is None:
        return None
    return {key: asdict(standard) for key, standard in reward.standards.items()}


def _asked(task: EvalTask) -> str:
    return _digest(json.dumps([list(task.prompts), list(task.negatives or []), list(task.seeds)]).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def run_device(recipe: Recipe) -> str:
    """The device of the recipe, or the best one of this machine."""
    return resolve_device(recipe.backbone.device)


def make_tasks(recipe: Recipe) -> tuple[EvalTask, EvalTask]:
    """Tuning and test tasks.

    Args:
        recipe: of the training.

    Raises:
        PromptError: too few held-out prompts.
        ConfigError: they have negative prompts, and the pipeline does not guide.
    """
    p, wanted = recipe.prompts, recipe.evaluation
    source = load_source(p.source, p.column, p.limit, p.negative, p.subset, p.split)
    _, held_out = split_by_hash(source, p.held_out_fraction)
    fresh = held_out[recipe.validation.prompts :]
    tuned = wanted.tuning_prompts
    if len(fresh) < tuned + 2:
        raise PromptError(
            f"got {len(fresh)} held-out prompts beside those of validation, expected at least {tuned + 2}; "
            "add prompts, raise prompts.held_out_fraction, or lower validation.prompts or evaluation.tuning_prompts"
        )
    check_negatives(recipe, source)
    # As in training: where any prompt has a negative one, the others have an empty one.
    negatives = [p.negative or "" for p in fresh] if any(p.negative for p in source) else None
    device = run_device(recipe)
    scoring = reward_device(recipe.reward, device)
    pipe = load_backbone(replace(recipe.backbone, shard=False), device)  # one process has nobody to share with
    pipe.set_progress_bar_config(disable=True)
    tuning = EvalTask(
        prompts=[p.text for p in fresh[:tuned]],
        seeds=[derive_seed(Stream.TEST, 1, i) for i in range(tuned)],
        pipe=pipe,
        arguments=pipeline_arguments(recipe.backbone),
        reward=run_reward(recipe_reward(recipe.reward, scoring), Path(recipe.output)),
        judge=TinyworldJudge() if p.source == "tinyworld" else None,
        solver=recipe.sampling.solver,
        max_steps=recipe.sampling.max_steps,
        stop_below=recipe.sampling.stop_below,
        batch=max(recipe.rl.rollout_batch, 1),
        negatives=None if negatives is None else negatives[:tuned],
        decode_batch=recipe.backbone.decode_batch,
    )
    asked = slice(tuned, tuned + wanted.prompts)
    each = wanted.samples_per_prompt
    prompts = [p.text for p in fresh[asked] for _ in range(each)]
    return tuning, replace(
        tuning,
        prompts=prompts,
        seeds=[derive_seed(Stream.TEST, 0, i) for i in range(len(prompts))],
        negatives=None if negatives is None else [n for n in negatives[asked] for _ in range(each)],
        judges=_labeled(load_judges(wanted.judges, recipe.reward, scoring)),
    )


def _labeled(judges: Mapping[str, Reward]) -> dict[str, Reward]:
    """By the name that is shown; by the recipe's where two would be called the same, such as CLIPs of two owners."""
    shown = [reward.name for reward in judges.values()]
    return {(r.name if shown.count(r.name) == 1 else name): r for name, r in judges.items()}


logger = logging.getLogger(__name__)

_TOLD = ("backbone.", "sampling.", "reward.")


def check_no_leakage(recipe: Recipe, tuning: EvalTask, test: EvalTask) -> None:
    """Refuses prompts that the TPM was trained or chosen on, and says what else differs from its training.

    Nothing is known, and nothing said, of a TPM that lies in no run.

    Args:
        recipe: of the evaluation.
        tuning: what controls are chosen on.
        test: what is compared.

    Raises:
        ConfigError: some of the prompts are not new.
    """
    path = Path(recipe.output) / "recipe.yaml"
    if not path.is_file():
        return
    made = load_recipe(path)
    before, now = _asked_of_training(made), _asked_of_training(recipe)
    if before != now and (seen := _known(made)):
        asked = [*tuning.prompts, *test.prompts]
        common = sum(prompt in seen for prompt in asked)
        if common:
            raise ConfigError(
                f"got {common} of {len(asked)} prompts that this TPM was trained or chosen on, expected none "
                f"({differences(before, now)}); give tpdm eval the recipe and the overrides of the training."
            )
    before, now = _settings(made), _settings(recipe)
    if before != now:
        logger.warning("evaluated otherwise than trained: %s", differences(before, now, limit=9))


def _asked_of_training(recipe: Recipe) -> dict[str, Any]:
    """What decides which prompts are held out, and which of these a validation has."""
    prompts = {f"prompts.{key}": value for key, value in asdict(recipe.prompts).items()}
    return {**prompts, "validation.prompts": recipe.validation.prompts}


def _known(made: Recipe) -> set[str]:
    """Texts of training and validation; none where they cannot be read any more."""
    try:
        return {prompt.text for side in choose_prompts(made) for prompt in side}
    except PromptError as error:
        logger.warning("whether the prompts are new to the TPM is not known: %s", error)
        return set()


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in run_identity(recipe, [], []).items() if key.startswith(_TOLD)}
