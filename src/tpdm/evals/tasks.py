"""What an evaluation asks for: held-out prompts that validation does not use, on noise of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tpdm.devices import resolve_device
from tpdm.evals.compare import Task
from tpdm.evals.judge import TinyworldJudge
from tpdm.pipelines.load import load_backbone, pipeline_arguments
from tpdm.prompts import load_source, split_by_hash
from tpdm.recipe import Recipe
from tpdm.rewards.base import Reward
from tpdm.rewards.composite import run_reward
from tpdm.rewards.load import load_judges, recipe_reward, reward_device
from tpdm.streams import Stream, derive_seed
from tpdm.train.build import check_negatives
from tpdm.types import PromptError


def run_device(recipe: Recipe) -> str:
    """The device of the recipe, or the best one of this machine."""
    return resolve_device(recipe.backbone.device)


def make_tasks(recipe: Recipe) -> tuple[Task, Task]:
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
    tuning = Task(
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
        judges=_labelled(load_judges(wanted.judges, recipe.reward, scoring)),
    )


def _labelled(judges: Mapping[str, Reward]) -> dict[str, Reward]:
    """By the name that is shown; by the recipe's where two would be called the same, such as CLIPs of two owners."""
    shown = [reward.name for reward in judges.values()]
    return {(r.name if shown.count(r.name) == 1 else name): r for name, r in judges.items()}
