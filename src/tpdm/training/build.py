"""The parts of a recipe's run: pipeline, policy, reward and prompts, loaded for one process."""

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
from tpdm.data.truncation import Truncation, tell
from tpdm.pipelines.attach import attach
from tpdm.pipelines.compatibility import check_pictures
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
from tpdm.pipelines.truncation import over_long
from tpdm.policies.pretrained import save_pretrained
from tpdm.policies.pretrained_config import PretrainedConfig
from tpdm.policies.tpm import TimePredictionModule
from tpdm.rewards.base import ReadsTokens, Reward
from tpdm.rewards.loading import load_judges, recipe_reward, reward_device
from tpdm.sampling.prompt_embeddings import Text, TextStore
from tpdm.sampling.samplers import choose_sampler
from tpdm.training.batch_sampler import draw_prompts
from tpdm.training.components import TrainingComponents
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.distributed.sharding import SynchronizedSampler, check_shard, shard_denoiser
from tpdm.training.initialization import CALIBRATION_PROMPTS, init_policy, init_times, init_times_low_gamma
from tpdm.training.monitoring.metrics import calibration

logger = logging.getLogger(__name__)


def build_components(recipe: Recipe, folder: Path, context: DistributedContext = SINGLE_PROCESS) -> TrainingComponents:
    """Pipeline, policy, reward and prompts of a recipe, as one process of the context needs them."""
    train_prompts, validation_prompts = choose_prompts(recipe)
    check_negatives(recipe, (*train_prompts, *validation_prompts))
    device = resolve_device(recipe.backbone.device)
    arguments = pipeline_arguments(recipe.backbone)
    texts, looking, needed = None, arguments, ALL
    if recipe.backbone.precompute_prompt_embeddings:
        drawn = run_texts(recipe, train_prompts, validation_prompts)
        texts, needed = encode_texts(recipe, drawn, arguments, folder, device), NO_TEXT_ENCODERS
        looking = arguments | texts.call(drawn[:1], device)
    check_shard(recipe, context, len(validation_prompts) * recipe.validation.samples_per_prompt)
    pipe = load_backbone(recipe.backbone, device, needed)
    check_pictures(pipe)
    if recipe.backbone.shard:
        shard_denoiser(pipe, device, context.size)
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    widths = infer_feature_shapes(pipe, looking)
    start, fast = init_times(recipe.tpm, pipe, looking), init_times_low_gamma(recipe.tpm, pipe, looking)
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
        tell_over_long(pipe, arguments, reward, [p.text for p in (*train_prompts, *validation_prompts)])
    sampler = choose_sampler(recipe, adaptive, arguments, texts)
    return TrainingComponents(
        policy=policy,
        sampler=SynchronizedSampler(sampler, find_denoiser(pipe), context) if recipe.backbone.shard else sampler,
        reward=reward,
        train_prompts=train_prompts,
        validation_prompts=validation_prompts,
        save=save,
        judges=load_judges(recipe.validation.judges, recipe.reward, scoring),
    )


def tell_over_long(pipe: Any, arguments: dict[str, Any], reward: Reward, prompts: Sequence[str]) -> None:
    """Says once, as a warning in the log, how many prompts a text encoder or the reward does not read to their end."""
    readers: list[Truncation] = over_long(pipe, arguments, prompts)
    readers += reward.over_long(prompts) if isinstance(reward, ReadsTokens) else []
    tell(readers, len(prompts))


def choose_prompts(recipe: Recipe) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts, and the first held-out ones for validation."""
    p = recipe.prompts
    everything = load_source(p.source, p.column, p.limit, p.negative, p.subset, p.split)
    train_prompts, held_out = split_by_hash(everything, p.held_out_fraction)
    if not train_prompts or not held_out:
        raise PromptError(
            f"got {len(train_prompts)} training and {len(held_out)} held-out prompts from '{p.source}', expected at "
            "least one of each; add prompts or change prompts.held_out_fraction"
        )
    return train_prompts, held_out[: recipe.validation.prompts]


def check_negatives(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Refuses negative prompts that the pipeline does not use; a warning where the recipe switches guidance off.

    Raises:
        ConfigError: some prompts have one, and the pipeline does not guide by itself.
    """
    negatives = [p.negative for p in prompts if p.negative]
    guidance = guidance_of(recipe.backbone.name_or_path) if negatives else None
    if guidance is None:
        return
    said = {**guidance_arguments(recipe.backbone), "negative_prompt": negatives}
    try:
        warning = guidance.check({**pipeline_arguments(recipe.backbone), **said}, said)
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
    """What the artifact says of itself."""
    denoiser, guidance = find_denoiser(pipe), arguments.get(Guidance.of(pipe).asked)
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


FOLDER = "texts"  # of a run's folder


def run_texts(recipe: Recipe, train_prompts: Sequence[Prompt], validation_prompts: Sequence[Prompt]) -> list[Text]:
    """Every prompt that a run will draw, with its negative prompt, each once."""
    rl = recipe.rl
    drawn = [*validation_prompts, *draw_prompts(train_prompts, CALIBRATION_PROMPTS, recipe.seed, 0)]
    for update in range(rl.updates):
        drawn += draw_prompts(train_prompts, rl.prompts_per_update, recipe.seed, update)
        if len(set(drawn)) >= len(train_prompts) + len(validation_prompts):
            break
    # The empty text too, where guidance needs a negative prompt.
    avoided = pipeline_arguments(recipe.backbone).get("negative_prompt")
    plain = avoided is None and all(p.negative is None for p in (*train_prompts, *validation_prompts))
    return list(dict.fromkeys((p.text, None if plain else p.negative or "") for p in drawn))


def encode_texts(
    recipe: Recipe, texts: Sequence[Text], arguments: Mapping[str, Any], folder: Path, device: str
) -> TextStore:
    """Encodes what ``folder`` lacks, and lets go of the text encoders.

    Args:
        recipe: of the run.
        texts: of it.
        arguments: of every pipeline call.
        folder: of the run.
        device: of the encoders, while they are needed.
    """
    store = TextStore.of(folder / FOLDER, recipe.backbone, arguments)
    if store.missing(texts):
        backbone = recipe.backbone
        pipe = load_pipeline(backbone.name_or_path, backbone.dtype, device, TEXT_ENCODERS, backbone.variant)
        store.add(pipe, texts)
        del pipe
        gc.collect()  # a pipeline holds itself in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return store
