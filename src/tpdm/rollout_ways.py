"""How a run makes its images: in batches that wait for their slowest one, or with places that never stay empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpdm.recipe import Recipe
from tpdm.rollout import PipelineSampler, Sampler
from tpdm.rollout_continuous import ContinuousSampler

if TYPE_CHECKING:  # training on another sampler loads no diffusers
    from tpdm.pipelines.attach import AdaptivePipeline
    from tpdm.pipelines.texts import TextStore


def choose_sampler(
    recipe: Recipe, pipeline: AdaptivePipeline, arguments: dict[str, Any], texts: TextStore | None
) -> Sampler:
    """The sampler that ``rl.rollout`` names.

    Args:
        recipe: of the run.
        pipeline: made by ``attach``.
        arguments: of every pipeline call.
        texts: embeddings of all prompts of the run; None lets the pipeline encode them.
    """
    if recipe.rl.rollout == "continuous":
        return ContinuousSampler(pipeline, recipe.rl.rollout_batch, arguments, texts)
    return PipelineSampler(pipeline, recipe.rl.rollout_batch, arguments, texts, recipe.backbone.decode_batch)
