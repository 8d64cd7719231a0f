"""The parts of a recipe's run: pipeline, policy, reward and prompts, loaded for one process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tpdm.artefact import save_pretrained
from tpdm.artefact_config import ArtefactConfig
from tpdm.devices import resolve_device
from tpdm.over_long import OverLong, tell
from tpdm.pipelines.attach import attach
from tpdm.pipelines.backbones import backbone_facts, find_denoiser
from tpdm.pipelines.checks import check_pictures
from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.load import (
    ALL,
    NO_TEXT_ENCODERS,
    guidance_arguments,
    guidance_of,
    load_backbone,
    pinned_arguments,
    pipeline_arguments,
)
from tpdm.pipelines.probe import probe_features
from tpdm.pipelines.reads import over_long
from tpdm.policy import TimePredictor
from tpdm.prompts import Prompt, load_source, split_by_hash
from tpdm.recipe import Recipe
from tpdm.rewards.base import ReadsTokens, Reward
from tpdm.rewards.load import load_judges, recipe_reward, reward_device
from tpdm.rollout_ways import choose_sampler
from tpdm.train.dial import calibration
from tpdm.train.fresh import fast_times, make_policy, start_times
from tpdm.train.parts import Parts
from tpdm.train.shard import InStep, check_shard, shard_denoiser
from tpdm.train.team import ALONE, Team
from tpdm.train.texts import encode_texts, run_texts
from tpdm.types import BackboneError, ConfigError, PromptError

_LOG = logging.getLogger(__name__)


def build_parts(recipe: Recipe, folder: Path, team: Team = ALONE) -> Parts:
    """Pipeline, policy, reward and prompts of a recipe, as one process of the team needs them."""
    train_prompts, validation_prompts = choose_prompts(recipe)
    check_negatives(recipe, (*train_prompts, *validation_prompts))
    device = resolve_device(recipe.backbone.device)
    arguments = pipeline_arguments(recipe.backbone)
    texts, looking, needed = None, arguments, ALL
    if recipe.backbone.text_encoders == "leave":
        drawn = run_texts(recipe, train_prompts, validation_prompts)
        texts, needed = encode_texts(recipe, drawn, arguments, folder, device), NO_TEXT_ENCODERS
        looking = arguments | texts.call(drawn[:1], device)
    check_shard(recipe, team, len(validation_prompts) * recipe.validation.samples_per_prompt)
    pipe = load_backbone(recipe.backbone, device, needed)
    check_pictures(pipe)
    if recipe.backbone.shard:
        shard_denoiser(pipe, device, team.size)
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    widths = probe_features(pipe, looking)
    start, fast = start_times(recipe.tpm, pipe, looking), fast_times(recipe.tpm, pipe, looking)
    policy = make_policy(recipe, widths, start, fast).to(device)
    adaptive = attach(
        pipe,
        policy,
        solver=recipe.sampling.solver,
        max_steps=recipe.sampling.max_steps,
        stop_below=recipe.sampling.stop_below,
    )

    def save(name: str, policy: TimePredictor, facts: dict[str, Any]) -> None:
        pinned = pinned_arguments(pipe, arguments, any(p.negative for p in (*train_prompts, *validation_prompts)))
        config = artefact_config(recipe, policy, pipe, pinned, facts)
        save_pretrained(policy, config, folder / name)

    scoring = reward_device(recipe.reward, device)
    reward = recipe_reward(recipe.reward, scoring)
    if team.leads:
        tell_over_long(pipe, arguments, reward, [p.text for p in (*train_prompts, *validation_prompts)])
    sampler = choose_sampler(recipe, adaptive, arguments, texts)
    return Parts(
        policy=policy,
        sampler=InStep(sampler, find_denoiser(pipe), team) if recipe.backbone.shard else sampler,
        reward=reward,
        train_prompts=train_prompts,
        validation_prompts=validation_prompts,
        save=save,
        judges=load_judges(recipe.validation.judges, recipe.reward, scoring),
    )


def tell_over_long(pipe: Any, arguments: dict[str, Any], reward: Reward, prompts: Sequence[str]) -> None:
    """Says once, as a warning in the log, how many prompts a text encoder or the reward does not read to their end."""
    readers: list[OverLong] = over_long(pipe, arguments, prompts)
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
        _LOG.warning("%s has negative prompts: %s", recipe.prompts.source, warning)


def artefact_config(
    recipe: Recipe,
    policy: TimePredictor,
    pipe: Any,
    arguments: dict[str, Any],
    facts: dict[str, Any],
) -> ArtefactConfig:
    """What the artefact says of itself."""
    denoiser, guidance = find_denoiser(pipe), arguments.get(Guidance.of(pipe).asked)
    return ArtefactConfig(
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
        dial=calibration(facts["validation"]),
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
