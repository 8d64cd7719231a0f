"""Make the tasks of an evaluation, and the fingerprint of everything that their results depend on."""

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
    """Return everything that the rows of every policy depend on.

    Settings that change only memory and time (``tpdm.training.run_identity.FREE``) are excluded. An evaluation that
    ran out of memory can therefore resume with another ``backbone.offload``.

    Args:
        recipe: Recipe of the evaluation.
        tuning: Task on which baselines are selected.
        test: Task on which policies are compared.
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
    """Return what the rows of learned schedules depend on in addition.

    Args:
        recipe: Recipe of the evaluation.
        which: TPM of the run, ``best`` or ``last``.
    """
    tuned = recipe.evaluation.tuned_baseline
    return {
        "tpm": _digest((Path(recipe.output) / which / WEIGHTS).read_bytes()),
        "tuned": None if tuned is None else _digest((Path(tuned) / WEIGHTS).read_bytes()),
    }


def _standards(reward: Reward) -> dict[str, Any] | None:
    """Return the statistics of a composite. They differ between trainings that have the same reward names."""
    if not isinstance(reward, CompositeReward) or reward.standards is None:
        return None
    return {key: asdict(standard) for key, standard in reward.standards.items()}


def _asked(task: EvalTask) -> str:
    return _digest(json.dumps([list(task.prompts), list(task.negatives or []), list(task.seeds)]).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def run_device(recipe: Recipe) -> str:
    """Return the device of the recipe. ``auto`` is the best device of this machine."""
    return resolve_device(recipe.backbone.device)


def make_tasks(recipe: Recipe) -> tuple[EvalTask, EvalTask]:
    """Make the tuning task and the test task.

    Args:
        recipe: Recipe of the training.

    Raises:
        PromptError: If there are too few held-out prompts.
        ConfigError: If prompts have negative prompts and the pipeline uses no guidance.
    """
    p, wanted = recipe.prompts, recipe.evaluation
    source = load_source(p.source, p.column, p.limit, p.negative, p.subset, p.split)
    _, held_out = split_by_hash(source, p.held_out_fraction)
    fresh = held_out[recipe.validation.prompts :]
    tuned = wanted.tuning_prompts
    if len(fresh) < tuned + 2:
        raise PromptError(
            f"There are {len(fresh)} held-out prompts in addition to those of validation. Evaluation needs at least "
            f"{tuned + 2}. Add prompts, increase prompts.held_out_fraction, or decrease validation.prompts or "
            "evaluation.tuning_prompts."
        )
    check_negatives(recipe, source)
    # As in training: if any prompt has a negative prompt, the others have an empty one.
    negatives = [p.negative or "" for p in fresh] if any(p.negative for p in source) else None
    device = run_device(recipe)
    scoring = reward_device(recipe.reward, device)
    pipe = load_backbone(replace(recipe.backbone, shard=False), device)  # there is only one process
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
    """Return judges by their display names, or by their recipe names if display names are equal."""
    shown = [reward.name for reward in judges.values()]
    return {(r.name if shown.count(r.name) == 1 else name): r for name, r in judges.items()}


logger = logging.getLogger(__name__)

_TOLD = ("backbone.", "sampling.", "reward.")


def check_no_leakage(recipe: Recipe, tuning: EvalTask, test: EvalTask) -> None:
    """Check that the TPM was not trained or selected on the prompts, and warn of other differences from the training.

    Nothing is checked if the folder contains no recipe of a training.

    Args:
        recipe: Recipe of the evaluation.
        tuning: Task on which baselines are selected.
        test: Task on which policies are compared.

    Raises:
        ConfigError: If training or validation used some of the prompts.
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
                f"The training used {common} of the {len(asked)} prompts of this evaluation "
                f"({differences(before, now)}). Evaluation prompts must be new. Give tpdm eval the recipe and the "
                "overrides of the training."
            )
    before, now = _settings(made), _settings(recipe)
    if before != now:
        logger.warning(
            "The settings of the evaluation differ from those of the training: %s", differences(before, now, limit=9)
        )


def _asked_of_training(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that determine the prompts of training and validation."""
    prompts = {f"prompts.{key}": value for key, value in asdict(recipe.prompts).items()}
    return {**prompts, "validation.prompts": recipe.validation.prompts}


def _known(made: Recipe) -> set[str]:
    """Return the prompts of training and validation, or an empty set if they cannot be read."""
    try:
        return {prompt.text for side in choose_prompts(made) for prompt in side}
    except PromptError as error:
        logger.warning("Cannot check whether the TPM was trained on these prompts: %s", error)
        return set()


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in run_identity(recipe, [], []).items() if key.startswith(_TOLD)}
