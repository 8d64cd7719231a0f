"""The plan of a run before anything is loaded: ``tpdm train RECIPE --dry-run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpdm.config.recipe import Recipe
from tpdm.config.unused_keys import warn_unused_keys
from tpdm.data.prompts import Prompt
from tpdm.pipelines.metadata import PipelineSizes, pipeline_sizes
from tpdm.training.build import FOLDER, check_negatives, choose_prompts, run_prompt_pairs
from tpdm.training.planning.memory import GIB, MemoryPart, Place, estimate_memory, memory_peaks


@dataclass(frozen=True)
class Plan:
    """A run before it starts. Evaluations and bytes are upper bounds, reached if every image takes the maximum steps.

    Attributes:
        training_prompts: Number of distinct training prompts.
        validation_prompts: Number of distinct validation prompts.
        trajectories: Trajectories of one update.
        images_per_run: Trajectories of all updates.
        evaluations_per_update: Denoiser evaluations of one update (two rows each with guidance).
        passes: Optimizer passes over the decisions of an update.
        memory: Parts of the memory estimate.
        files: Files that the run will write.
    """

    training_prompts: int
    validation_prompts: int
    trajectories: int
    images_per_run: int
    evaluations_per_update: int
    passes: int
    memory: tuple[MemoryPart, ...]
    files: tuple[Path, ...]


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe. Reads the prompts and the configuration of the pipeline, but no weights.

    Args:
        recipe: Recipe of the run.

    Raises:
        TpdmError: A run would refuse the prompts, the pipeline or the recipe at its start.
    """
    warn_unused_keys(recipe)
    train_prompts, validation = choose_prompts(recipe)
    check_negatives(recipe, (*train_prompts, *validation))
    return _plan(recipe, train_prompts, validation, pipeline_sizes(recipe.backbone.name_or_path))


def _plan(recipe: Recipe, train: list[Prompt], validation: list[Prompt], sizes: PipelineSizes) -> Plan:
    rl, out = recipe.rl, Path(recipe.output)
    trajectories = rl.prompts_per_update * rl.samples_per_prompt
    names = ["recipe.yaml", "metrics.jsonl", "checkpoints", "last", "best", "run.json"]
    if recipe.backbone.precompute_prompt_embeddings:
        names.append(FOLDER)
    return Plan(
        training_prompts=len(train),
        validation_prompts=len(validation),
        trajectories=trajectories,
        images_per_run=trajectories * rl.updates,
        evaluations_per_update=trajectories * recipe.sampling.max_steps,
        passes=rl.epochs,
        memory=tuple(estimate_memory(recipe, sizes, len(run_prompt_pairs(recipe, train, validation)))),
        files=tuple(out / name for name in names),
    )


def describe(plan: Plan, recipe: Recipe) -> str:
    """The plan as text for a terminal."""
    lines = [
        f"run      {recipe.name}: {recipe.rl.updates} updates, seed {recipe.seed}",
        f"prompts  {plan.training_prompts} for training, {plan.validation_prompts} for validation "
        f"(from {recipe.prompts.source})",
        f"update   {recipe.rl.prompts_per_update} prompts x {recipe.rl.samples_per_prompt} samples = "
        f"{plan.trajectories} trajectories, at most {plan.evaluations_per_update} evaluations of the denoiser, "
        f"{plan.passes} passes",
        f"in all   {plan.images_per_run} images, scored by {recipe.reward.name}",
        "memory   (counted on shapes, without workspaces of kernels)",
        *_memory(plan, "device", f"GPU, or backbone.device={recipe.backbone.device}"),
        *_memory(plan, "host", "host"),
        *_memory(plan, "disk", "disk"),
        "files",
        *(f"  {path}" for path in plan.files),
    ]
    return "\n".join(lines)


def _memory(plan: Plan, place: Place, title: str) -> list[str]:
    parts = [part for part in plan.memory if part.place == place]
    if not parts:
        return []
    rows = [
        f"    {'not counted' if part.size is None else f'{part.size / GIB:7.2f} GiB':>11}  {part.phase:<8}  {part.name}"
        for part in parts
    ]
    if place == "disk":
        return [f"  {title}", *rows]
    peaks = memory_peaks(plan.memory, place)
    phase = max(peaks, key=lambda name: peaks[name])
    return [f"  {title}", *rows, f"    {peaks[phase] / GIB:7.2f} GiB  at most, while {phase}"]
