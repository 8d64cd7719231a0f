"""Which prompts an update gets."""

from __future__ import annotations

from collections.abc import Sequence

from tpdm.prompts import Prompt
from tpdm.streams import Stream, stream_generator
from tpdm.types import PromptError


def deal_prompts(prompts: Sequence[Prompt], count: int, seed: int, update: int) -> list[Prompt]:
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
