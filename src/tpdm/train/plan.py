"""What a recipe will do, said before anything is loaded: ``tpdm train RECIPE --dry-run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpdm.pipelines.sizes import PipelineSizes, pipeline_sizes
from tpdm.policy import TimePredictor
from tpdm.policy_shape import TpmShape
from tpdm.prompts import Prompt
from tpdm.recipe import Recipe
from tpdm.train.run import choose_prompts

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ADAM = 4  # weights, gradients and two moments
MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """A run before it starts; numbers of calls and bytes are upper bounds where every image runs to the cap.

    Attributes:
        training_prompts, validation_prompts: distinct ones that will be used.
        trajectories: in one update.
        images_per_run: trajectories of all updates.
        evaluations_per_update: denoiser evaluations of one update's images (two rows each under guidance).
        passes: optimizer passes over the decisions of an update.
        memory: bytes by part.
        files: that the run will write.
    """

    training_prompts: int
    validation_prompts: int
    trajectories: int
    images_per_run: int
    evaluations_per_update: int
    passes: int
    memory: dict[str, int]
    files: tuple[Path, ...]


def make_plan(recipe: Recipe) -> Plan:
    """Reads the prompts and the configuration of the pipeline, but no weights.

    Raises:
        TpdmError: what a run would refuse at its start, too: prompts, pipeline, recipe.
    """
    train_prompts, validation = choose_prompts(recipe)
    return _plan(recipe, train_prompts, validation, pipeline_sizes(recipe.backbone.name_or_path))


def _plan(recipe: Recipe, train: list[Prompt], validation: list[Prompt], sizes: PipelineSizes) -> Plan:
    rl, out = recipe.rl, Path(recipe.output)
    trajectories = rl.prompts_per_update * rl.samples_per_prompt
    return Plan(
        training_prompts=len(train),
        validation_prompts=len(validation),
        trajectories=trajectories,
        images_per_run=trajectories * rl.updates,
        evaluations_per_update=trajectories * recipe.sampling.max_steps,
        passes=rl.epochs,
        memory=estimate_memory(recipe, sizes),
        files=tuple(out / name for name in ("recipe.yaml", "metrics.jsonl", "checkpoints", "last", "best", "run.json")),
    )


def estimate_memory(recipe: Recipe, sizes: PipelineSizes) -> dict[str, int]:
    """Bytes by part: the frozen networks, the TPM with its optimizer, and the record of one update's decisions.

    Activations of the denoiser and of the decoder are not in it: they depend on kernels, and are what a first step
    at ``rl.rollout_batch`` shows.
    """
    weight = BYTES[recipe.backbone.dtype]
    shape = TpmShape(
        feature_channels=sizes.feature_channels,
        temb_channels=sizes.temb_channels,
        channels=recipe.tpm.channels,
        grid=recipe.tpm.grid,
    )
    tpm = sum(p.numel() for p in TimePredictor(shape).parameters())
    return {
        **{f"{name} (frozen)": n * weight for name, n in sizes.parameters.items()},
        "TPM, gradients and optimizer": tpm * 4 * ADAM,
        "replay of one update, at most": replay_bytes(recipe, sizes.feature_channels, sizes.temb_channels),
    }


def replay_bytes(recipe: Recipe, feature_channels: int, temb_channels: int) -> int:
    """Bytes that the decisions of one update take if every image runs to the cap: independent of the image's size."""
    observation = 2 * feature_channels * recipe.tpm.grid**2 + temb_channels
    decisions = recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt * recipe.sampling.max_steps
    return 2 * observation * decisions  # fp16


def describe(plan: Plan, recipe: Recipe) -> str:
    """The plan as text."""
    lines = [
        f"run      {recipe.name}: {recipe.rl.updates} updates, seed {recipe.seed}",
        f"prompts  {plan.training_prompts} for training, {plan.validation_prompts} for validation "
        f"(from {recipe.prompts.source})",
        f"update   {recipe.rl.prompts_per_update} prompts x {recipe.rl.samples_per_prompt} samples = "
        f"{plan.trajectories} trajectories, at most {plan.evaluations_per_update} evaluations of the denoiser, "
        f"{plan.passes} passes",
        f"in all   {plan.images_per_run} images, scored by {recipe.reward.name}",
        "memory   (weights and records; activations come on top)",
        *(f"  {size / MIB:10.1f} MiB  {part}" for part, size in plan.memory.items()),
        f"  {sum(plan.memory.values()) / MIB:10.1f} MiB  together",
        "files",
        *(f"  {path}" for path in plan.files),
    ]
    return "\n".join(lines)
