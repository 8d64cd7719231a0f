"""Which prompts an update gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpdm.config.recipe import RewardConfig
from tpdm.core.errors import PromptError
from tpdm.core.seeding import Stream, stream_generator
from tpdm.data.prompts import Prompt
from tpdm.policies.gamma import gamma_position, spread_gammas


def draw_prompts(prompts: Sequence[Prompt], count: int, seed: int, update: int) -> list[Prompt]:
    """``count`` prompts for one update: every prompt once before any comes again, in the seed's order.

    Depends on its arguments alone, so that a resumed run sees what an uninterrupted one would have seen.

    Raises:
        PromptError: there are none.
    """
    if not prompts:
        raise PromptError("got no training prompts, expected at least one; lower prompts.held_out_fraction")
    first, last = update * count, (update + 1) * count
    epochs = range(first // len(prompts), (last - 1) // len(prompts) + 1)
    orders = {e: stream_generator(seed, Stream.PROMPTS, e).permutation(len(prompts)) for e in epochs}
    places = (divmod(position, len(prompts)) for position in range(first, last))
    return [prompts[orders[epoch][place]] for epoch, place in places]


def draw_gammas(config: RewardConfig, prompts: int, seed: int, update: int) -> list[float] | None:
    """One gamma for each prompt of an update; None without a dial.

    The samples of a prompt share it, so that they are compared at the same price. Over the update the gammas are
    spread evenly, with a random offset and in random order: every update hears the whole range.
    """
    if config.gamma_range is None:
        return None
    draw = stream_generator(seed, Stream.GAMMAS, update)
    gammas = spread_gammas(prompts, *config.gamma_range, offset=float(draw.random()))
    return [gammas[i] for i in draw.permutation(prompts)]


def gamma_positions(config: RewardConfig, gammas_P: Sequence[float] | None) -> Tensor | None:
    """Where the gammas of the prompts stand on the dial, in [-1, 1]; None without a dial."""
    if config.gamma_range is None or gammas_P is None:
        return None
    return gamma_position(torch.tensor(gammas_P, dtype=torch.float32, device="cpu"), *config.gamma_range)
