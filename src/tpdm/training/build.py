"""Construction of a run's components from its recipe: prompts, pipeline, policy, reward and sampler."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tpdm.config.recipe import Recipe
from tpdm.core.device import resolve_device
from tpdm.core.errors import BackboneError, ConfigError, PromptError
from tpdm.data.prompts import Prompt, load_source, split_by_hash
from tpdm.data.truncation import Truncation, warn_truncated
from tpdm.pipelines.attach import attach
from tpdm.pipelines.compatibility import check_generates_images
from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.loading.load import (
    ALL,
    NO_TEXT_ENCODERS,
    TEXT_ENCODERS,
    guidance_arguments,
    guidance_of,
    load_backbone,
    load_pipeline,
    pinned_arguments,
    pipeline_arguments,
)
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.pipelines.registry import backbone_facts, find_denoiser
from tpdm.pipelines.truncation import count_truncated
from tpdm.policies.pretrained import save_pretrained
from tpdm.policies.pretrained_config import PretrainedConfig
from tpdm.policies.tpm import TimePredictionModule
from tpdm.rewards.base import ReadsTokens, Reward
from tpdm.rewards.loading import load_judges, recipe_reward, reward_device
from tpdm.sampling.prompt_embeddings import EmbeddingStore, PromptPair
from tpdm.sampling.samplers import choose_sampler
from tpdm.training.batch_sampler import draw_prompts
from tpdm.training.components import TrainingComponents
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.distributed.sharding import SynchronizedSampler, check_shard, shard_denoiser
from tpdm.training.initialization import CALIBRATION_PROMPTS, init_policy, init_times, init_times_low_gamma
from tpdm.training.monitoring.metrics import calibration

logger = logging.getLogger(__name__)


def build_components(recipe: Recipe, folder: Path, context: DistributedContext = SINGLE_PROCESS) -> TrainingComponents:
    """Loads the components of a run for one process.

    Args:
        recipe: Recipe of the run.
        folder: Folder of the run, for artifacts and prompt embeddings.
        context: The processes of the run. Default: this process only.

    Raises:
        TpdmError: Prompts, pipeline, policy or reward do not fit the recipe.
    """
    train_prompts, validation_prompts = choose_prompts(recipe)
    check_negatives(recipe, (*train_prompts, *validation_prompts))
    device = resolve_device(recipe.backbone.device)
    arguments = pipeline_arguments(recipe.backbone)
    store, probe_arguments, needed = None, arguments, ALL
    if recipe.backbone.precompute_prompt_embeddings:
        texts = run_prompt_pairs(recipe, train_prompts, validation_prompts)
        store, needed = precompute_embeddings(recipe, texts, arguments, folder, device), NO_TEXT_ENCODERS
        probe_arguments = arguments | store.call(texts[:1], device)
    check_shard(recipe, context, len(validation_prompts) * recipe.validation.samples_per_prompt)
    pipe = load_backbone(recipe.backbone, device, needed)
    check_generates_images(pipe)
    if recipe.backbone.shard:
        shard_denoiser(pipe, device, context.size)
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    widths = infer_feature_shapes(pipe, probe_arguments)
    start, fast = init_times(recipe.tpm, pipe, probe_arguments), init_times_low_gamma(recipe.tpm, pipe, probe_arguments)
    policy = init_policy(recipe, widths, start, fast).to(device)
    adaptive = attach(
        pipe,
        policy,
        solver=recipe.sampling.solver,
        max_steps=recipe.sampling.max_steps,
        stop_below=recipe.sampling.stop_below,
    )

    def save(name: str, policy: TimePredictionModule, facts: dict[str, Any]) -> None:
        pinned = pinned_arguments(pipe, arguments, any(p.negative for p in (*train_prompts, *validation_prompts)))
        config = pretrained_config(recipe, policy, pipe, pinned, facts)
        save_pretrained(policy, config, folder / name)

    scoring = reward_device(recipe.reward, device)
    reward = recipe_reward(recipe.reward, scoring)
    if context.is_main_process:
        warn_truncated_prompts(pipe, arguments, reward, [p.text for p in (*train_prompts, *validation_prompts)])
    sampler = choose_sampler(recipe, adaptive, arguments, store)
    return TrainingComponents(
        policy=policy,
        sampler=SynchronizedSampler(sampler, find_denoiser(pipe), context) if recipe.backbone.shard else sampler,
        reward=reward,
        train_prompts=train_prompts,
        validation_prompts=validation_prompts,
        save=save,
        judges=load_judges(recipe.validation.judges, recipe.reward, scoring),
    )


def warn_truncated_prompts(pipe: Any, arguments: dict[str, Any], reward: Reward, prompts: Sequence[str]) -> None:
    """Logs one warning if a text encoder or the reward truncates prompts, with their number."""
    truncations: list[Truncation] = count_truncated(pipe, arguments, prompts)
    truncations += reward.count_truncated(prompts) if isinstance(reward, ReadsTokens) else []
    warn_truncated(truncations, len(prompts))


def choose_prompts(recipe: Recipe) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts, and the first held-out prompts for validation.

    Raises:
        PromptError: There is no training prompt or no held-out prompt.
    """
    p = recipe.prompts
    prompts = load_source(p.source, p.column, p.limit, p.negative, p.subset, p.split)
    train_prompts, held_out = split_by_hash(prompts, p.held_out_fraction)
    if not train_prompts or not held_out:
        raise PromptError(
            f"'{p.source}' has {len(train_prompts)} training and {len(held_out)} held-out prompts. At least one of "
            "each is needed. Add prompts, or change prompts.held_out_fraction."
        )
    return train_prompts, held_out[: recipe.validation.prompts]


def check_negatives(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Refuses negative prompts that the pipeline does not use. Logs a warning if the recipe turns guidance off.

    Raises:
        ConfigError: Some prompts have a negative prompt, and the pipeline uses none.
    """
    negatives = [p.negative for p in prompts if p.negative]
    guidance = guidance_of(recipe.backbone.name_or_path) if negatives else None
    if guidance is None:
        return
    given = {**guidance_arguments(recipe.backbone), "negative_prompt": negatives}
    try:
        warning = guidance.check({**pipeline_arguments(recipe.backbone), **given}, given)
    except BackboneError as error:
        raise ConfigError(f"{recipe.prompts.source} has negative prompts: {error}") from error
    if warning:
        logger.warning("%s has negative prompts: %s", recipe.prompts.source, warning)


def pretrained_config(
    recipe: Recipe,
    policy: TimePredictionModule,
    pipe: Any,
    arguments: dict[str, Any],
    facts: dict[str, Any],
) -> PretrainedConfig:
    """The configuration that is saved with a trained policy."""
    denoiser, guidance = find_denoiser(pipe), arguments.get(Guidance.of(pipe).user_scale)
    return PretrainedConfig(
        shape=policy.shape,
        backbone_class=type(denoiser).__name__,
        backbone_name=recipe.backbone.name_or_path,
        features=f"tokens entering the first block and leaving the last, {policy.shape.features} rows, time embedding",
        guidance_scale=float(guidance if guidance is not None else 0.0),
        gamma=recipe.reward.gamma,
        reward=recipe.reward.label,
        reward_form="paper" if recipe.reward.form == "discounted" else "additive",
        reward_offset=recipe.reward.offset,
        solver=recipe.sampling.solver,
        max_steps=recipe.sampling.max_steps,
        stop_below=recipe.sampling.stop_below,
        mean_steps=facts["validation"]["steps_mean"],
        gamma_steps=calibration(facts["validation"]),
        call_defaults=arguments,
        backbone_facts=backbone_facts(denoiser),
        trained={
            "update": facts["update"],
            "objective": facts["validation"]["objective_mean"],
            "score": facts["validation"]["score_mean"],
            "seed": recipe.seed,
            "updates": recipe.rl.updates,
            "prompts_per_update": recipe.rl.prompts_per_update,
            "samples_per_prompt": recipe.rl.samples_per_prompt,
            "torch": torch.__version__,
        },
    )


FOLDER = "texts"  # subfolder of a run for prompt embeddings


def run_prompt_pairs(
    recipe: Recipe, train_prompts: Sequence[Prompt], validation_prompts: Sequence[Prompt]
) -> list[PromptPair]:
    """The distinct pairs of prompt and negative prompt that a run will draw."""
    rl = recipe.rl
    drawn = [*validation_prompts, *draw_prompts(train_prompts, CALIBRATION_PROMPTS, recipe.seed, 0)]
    for update in range(rl.updates):
        drawn += draw_prompts(train_prompts, rl.prompts_per_update, recipe.seed, update)
        if len(set(drawn)) >= len(train_prompts) + len(validation_prompts):
            break
    # The pair includes the empty text if guidance needs a negative prompt.
    default = pipeline_arguments(recipe.backbone).get("negative_prompt")
    plain = default is None and all(p.negative is None for p in (*train_prompts, *validation_prompts))
    return list(dict.fromkeys((p.text, None if plain else p.negative or "") for p in drawn))


def precompute_embeddings(
    recipe: Recipe, texts: Sequence[PromptPair], arguments: Mapping[str, Any], folder: Path, device: str
) -> EmbeddingStore:
    """Encodes the prompts that ``folder`` lacks, and frees the text encoders.

    Args:
        recipe: Recipe of the run.
        texts: Pairs of prompt and negative prompt.
        arguments: Arguments of every pipeline call.
        folder: Folder of the run.
        device: Device of the text encoders.
    """
    store = EmbeddingStore.of(folder / FOLDER, recipe.backbone, arguments)
    if store.missing(texts):
        backbone = recipe.backbone
        pipe = load_pipeline(backbone.name_or_path, backbone.dtype, device, TEXT_ENCODERS, backbone.variant)
        store.add(pipe, texts)
        del pipe
        gc.collect()  # a pipeline has reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return store
