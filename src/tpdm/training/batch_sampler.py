"""Prompts, noise seeds, decision seeds and gammas of each update, drawn from the seed of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpdm.config.recipe import Recipe, RewardConfig
from tpdm.core.errors import PromptError
from tpdm.core.seeding import Stream, derive_seed, stream_generator
from tpdm.data.prompts import Prompt
from tpdm.policies.gamma import spread_gammas
from tpdm.sampling.base import SampleRequest


@dataclass(frozen=True)
class BatchSampler:
    """Draws the images of an update.

    A draw depends only on the recipe, the prompts and the number of the update. A resumed run therefore draws what an
    uninterrupted run would have drawn.

    Attributes:
        recipe: Recipe of the run.
        prompts: Training prompts.
        with_negatives: Whether any prompt of the run has a negative prompt.
    """

    recipe: Recipe
    prompts: Sequence[Prompt]
    with_negatives: bool

    def draw(self, update: int) -> SampleRequest:
        """P * K images: K consecutive samples of each prompt, recorded.

        With ``rl.noise: shared`` the samples of a prompt start from the same noise and differ only in their decisions.
        Samples of a prompt share its gamma.

        Args:
            update: Number of the update, >= 0.
        """
        rl, seed, K = self.recipe.rl, self.recipe.seed, self.recipe.rl.samples_per_prompt
        prompts_P = draw_prompts(self.prompts, rl.prompts_per_update, seed, update)
        gammas_P = draw_gammas(self.recipe.reward, len(prompts_P), seed, update)
        samples = [(p, k) for p in range(len(prompts_P)) for k in range(K)]
        noises = [(p, k if rl.noise == "independent" else 0) for p, k in samples]
        return SampleRequest.of(
            [prompt for prompt in prompts_P for _ in range(K)],
            seeds=[derive_seed(seed, Stream.NOISE, update, *noise) for noise in noises],
            decision_seeds=[derive_seed(seed, Stream.DECISION, update, *sample) for sample in samples],
            record=True,
            gammas=None if gammas_P is None else [gamma for gamma in gammas_P for _ in range(K)],
            with_negatives=self.with_negatives,
        )


def draw_prompts(prompts: Sequence[Prompt], count: int, seed: int, update: int) -> list[Prompt]:
    """Prompts of one update. All prompts are drawn once before any is drawn again, in an order given by the seed.

    Args:
        prompts: Training prompts.
        count: Number of prompts to draw, >= 1.
        seed: Seed of the run, >= 0.
        update: Number of the update, >= 0.

    Raises:
        PromptError: There are no training prompts.

    Example:
        >>> pool = [Prompt("a cat"), Prompt("a dog"), Prompt("an owl")]
        >>> epoch = draw_prompts(pool, 2, seed=0, update=0) + draw_prompts(pool, 1, seed=0, update=2)
        >>> sorted(prompt.text for prompt in epoch)
        ['a cat', 'a dog', 'an owl']
    """
    if not prompts:
        raise PromptError("There are no training prompts. At least one is needed. Lower prompts.held_out_fraction.")
    first, last = update * count, (update + 1) * count
    epochs = range(first // len(prompts), (last - 1) // len(prompts) + 1)
    orders = {e: stream_generator(seed, Stream.PROMPTS, e).permutation(len(prompts)) for e in epochs}
    positions = (divmod(position, len(prompts)) for position in range(first, last))
    return [prompts[orders[epoch][index]] for epoch, index in positions]


def draw_gammas(config: RewardConfig, prompts: int, seed: int, update: int) -> list[float] | None:
    """One gamma for each prompt of an update.

    The gammas are spread evenly over ``gamma_range``, with a random offset and in random order, so that every update
    covers the whole range.

    Args:
        config: Reward section of the recipe.
        prompts: Number of prompts, >= 1.
        seed: Seed of the run, >= 0.
        update: Number of the update, >= 0.

    Returns:
        A list of ``prompts`` gammas. None if the recipe has no ``gamma_range``.
    """
    if config.gamma_range is None:
        return None
    draw = stream_generator(seed, Stream.GAMMAS, update)
    gammas = spread_gammas(prompts, *config.gamma_range, offset=float(draw.random()))
    return [gammas[i] for i in draw.permutation(prompts)]
