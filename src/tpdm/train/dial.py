"""Training for a range of gamma: which one each prompt of an update is made for, and where validation looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tpdm.core.dial import dial_position, gamma_at, spread_gammas
from tpdm.recipe import RewardConfig
from tpdm.streams import Stream, stream_generator


def deal_gammas(config: RewardConfig, prompts: int, seed: int, update: int) -> list[float] | None:
    """One gamma for each prompt of an update; None without a dial.

    The samples of a prompt share it, so that they are compared at the same price. Over the update the gammas are
    spread evenly, with a random offset and in random order: every update hears the whole range.
    """
    if config.gamma_range is None:
        return None
    draw = stream_generator(seed, Stream.GAMMAS, update)
    gammas = spread_gammas(prompts, *config.gamma_range, offset=float(draw.random()))
    return [gammas[i] for i in draw.permutation(prompts)]


def dial_places(config: RewardConfig, gammas_P: Sequence[float] | None) -> Tensor | None:
    """Where the gammas of the prompts stand on the dial, in [-1, 1]; None without a dial."""
    if config.gamma_range is None or gammas_P is None:
        return None
    return dial_position(torch.tensor(gammas_P, dtype=torch.float32, device="cpu"), *config.gamma_range)


def dial_points(config: RewardConfig, count: int) -> list[float] | None:
    """``count`` gammas from one end of the range to the other; None without a dial."""
    if config.gamma_range is None:
        return None
    return [gamma_at(i / (count - 1), *config.gamma_range) for i in range(count)]


def dial_statistics(
    gammas_B: Sequence[float] | None, score_B: Tensor, objective_B: Tensor, steps_B: Sequence[int]
) -> dict[str, Any]:
    """``dial``: what was measured at each gamma of a validation, lowest first; nothing without a dial."""
    if gammas_B is None:
        return {}
    rows = []
    for gamma in sorted(set(gammas_B)):
        here = [i for i, g in enumerate(gammas_B) if g == gamma]
        rows.append(
            {
                "gamma": gamma,
                "steps_mean": fmean(steps_B[i] for i in here),
                "score_mean": float(score_B[here].mean()),
                "objective_mean": float(objective_B[here].mean()),
            }
        )
    return {"dial": rows}


def calibration(validation: Mapping[str, Any]) -> tuple[tuple[float, float], ...] | None:
    """(gamma, mean steps) as a validation measured them, for ``ArtefactConfig.dial``; None without a dial."""
    rows = validation.get("dial")
    return None if rows is None else tuple((row["gamma"], row["steps_mean"]) for row in rows)
