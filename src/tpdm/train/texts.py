"""The texts of a run: which they are, and how they are encoded before the denoiser is loaded."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tpdm.pipelines.load import TEXT_ENCODERS, load_pipeline, pipeline_arguments
from tpdm.pipelines.texts import Text, TextStore
from tpdm.prompts import Prompt
from tpdm.recipe import Recipe
from tpdm.train.calibrate import CALIBRATION_PROMPTS
from tpdm.train.deal import deal_prompts

FOLDER = "texts"  # of a run's folder


def run_texts(recipe: Recipe, train_prompts: Sequence[Prompt], validation_prompts: Sequence[Prompt]) -> list[Text]:
    """Every prompt that a run will draw, with its negative prompt as ``Parts.make`` gives it, each once."""
    rl = recipe.rl
    drawn = [*validation_prompts, *deal_prompts(train_prompts, CALIBRATION_PROMPTS, recipe.seed, 0)]
    for update in range(rl.updates):
        drawn += deal_prompts(train_prompts, rl.prompts_per_update, recipe.seed, update)
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
