"""The TPM that a run begins with: its shape, its weights, and the schedules that it starts from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tpdm.artefact import load_policy
from tpdm.core.paths import shifted
from tpdm.pipelines.probe import FeatureWidths, default_times
from tpdm.policy import TimePredictor
from tpdm.policy_shape import TpmShape
from tpdm.recipe import Recipe, TpmConfig
from tpdm.streams import Stream, derive_seed
from tpdm.types import ConfigError

SHAPE_KEYS = ("layout", "features", "channels", "grid", "time_only", "maps", "change")


def start_times(tpm: TpmConfig, pipe: Any, arguments: dict[str, Any]) -> tuple[float, ...] | None:
    """The fixed schedule that the untrained TPM follows; None where the recipe names none."""
    return None if tpm.start_steps is None else _schedule(tpm.start_steps, tpm, pipe, arguments)


def fast_times(tpm: TpmConfig, pipe: Any, arguments: dict[str, Any]) -> tuple[float, ...] | None:
    """The same at the low end of the dial; None where the recipe names none."""
    return None if tpm.fast_steps is None else _schedule(tpm.fast_steps, tpm, pipe, arguments)


def _schedule(steps: int, tpm: TpmConfig, pipe: Any, arguments: dict[str, Any]) -> tuple[float, ...]:
    if tpm.start_shift is None:
        return tuple(default_times(pipe, steps, arguments))
    return tuple(shifted(steps, tpm.start_shift).tolist())


def make_policy(
    recipe: Recipe,
    widths: FeatureWidths,
    start: tuple[float, ...] | None = None,
    fast: tuple[float, ...] | None = None,
) -> TimePredictor:
    """A fresh TPM for features of these widths, or the one the recipe starts from.

    Raises:
        ConfigError: the recipe asks for another shape than that one has.
    """
    if recipe.tpm.init_from:
        policy = load_policy(recipe.tpm.init_from)
        _check_shape(recipe, policy.shape)
        return policy.train()
    folded = recipe.tpm.layout == "folded"
    shape = TpmShape(
        feature_channels=widths.feature_channels,
        temb_channels=widths.temb_channels,
        layout=recipe.tpm.layout,
        features=recipe.tpm.features,
        channels=recipe.tpm.channels,
        grid=recipe.tpm.grid,
        init_alpha=recipe.tpm.init_alpha,
        init_beta=recipe.tpm.init_beta,
        start_times=start,
        gamma_range=recipe.reward.gamma_range,
        fast_times=fast,
        time_only=recipe.tpm.time_only,
        maps=recipe.tpm.maps,
        change=recipe.tpm.change and not recipe.tpm.time_only,
        token_grid=widths.token_grid if folded else None,
    )
    return TimePredictor(shape, seed=derive_seed(recipe.seed, Stream.WEIGHTS) % 2**31)


def _check_shape(recipe: Recipe, shape: TpmShape) -> None:
    """A TPM that is trained on keeps its shape: what a recipe says of it must not be passed over.

    A key at its default is taken for not said; the dial has to be the same, since the price of a step and what the TPM
    is told of it go together.
    """
    wanted, plain = asdict(recipe.tpm), asdict(TpmConfig())
    said = {f"tpm.{k}": (wanted[k], asdict(shape)[k]) for k in SHAPE_KEYS if wanted[k] != plain[k]}
    said["reward.gamma_range"] = (recipe.reward.gamma_range, shape.gamma_range)
    for key, (asked, has) in said.items():
        if asked != has:
            raise ConfigError(
                f"got {key}={asked} and tpm.init_from={recipe.tpm.init_from}, a TPM that has {has}, expected them to "
                f"agree; give {key} that value, or start from another TPM or from none"
            )
