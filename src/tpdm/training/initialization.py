"""The initial policy, and the statistics of features and reward parts that are measured before the first update."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tpdm.config.recipe import Recipe, TpmConfig
from tpdm.core.errors import ConfigError
from tpdm.core.grids import shifted
from tpdm.core.seeding import Stream, derive_seed
from tpdm.pipelines.probe import FeatureWidths, default_times
from tpdm.policies.pretrained import load_policy
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.rewards.base import Reward
from tpdm.rewards.composite import CompositeReward, Standard, run_reward, save_standards
from tpdm.sampling.base import Sampler, SampleRequest
from tpdm.training.batch_sampler import draw_gammas, draw_prompts
from tpdm.training.components import TrainingComponents
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.rollout import make_rollout_buffer

CALIBRATION_PROMPTS = 64


def calibration_request(recipe: Recipe, components: TrainingComponents) -> SampleRequest:
    """The images that a run measures before its first update.

    They depend on the recipe and the prompts only, so that a resumed run sees the same ones. Their gammas are those of
    the first update.
    """
    prompts = draw_prompts(components.train_prompts, CALIBRATION_PROMPTS, recipe.seed, 0)
    noise, decisions = (
        [derive_seed(recipe.seed, Stream.CALIBRATION, i, n) for i in range(len(prompts))] for n in (0, 1)
    )
    gammas = draw_gammas(recipe.reward, len(prompts), recipe.seed, 0)
    return SampleRequest.of(prompts, noise, decisions, gammas=gammas, with_negatives=components.with_negatives)


def calibrate_policy(policy: TimePredictionModule, sampler: Sampler, request: SampleRequest) -> None:
    """Measures the features of an untrained policy on the images of ``calibration_request``."""
    if not policy.reads_features:
        return
    policy.eval()
    generated = sampler(replace(request, record=True))
    assert generated.trajectories is not None
    policy.calibrate(make_rollout_buffer(generated.trajectories).observation)


def calibrated_reward(
    reward: Reward,
    sampler: Sampler,
    request: SampleRequest,
    folder: Path,
    fresh: bool,
    context: DistributedContext = SINGLE_PROCESS,
    sharded: bool = False,
) -> Reward:
    """The reward that a run uses from its first image to its last.

    Args:
        reward: A composite gets its statistics. Any other reward is returned unchanged.
        sampler: Makes images with the untrained policy of a fresh run.
        request: See ``calibration_request``.
        folder: Folder of the run. Contains the statistics as ``reward-statistics.json``.
        fresh: Whether the statistics are measured and written. A resumed run reads them, so that its objective stays
            the same.
        context: The processes of the run. Only the main process measures or reads.
        sharded: Whether the denoiser is sharded, so that all processes make the images. Default: False.

    Raises:
        RewardError: A part fails or gives all images the same score, or a resumed run has no statistics.
    """
    if not isinstance(reward, CompositeReward):
        return reward
    if fresh and (context.is_main_process or sharded):
        generated = sampler(request)
        if context.is_main_process:
            reward = reward.calibrated(generated.images_B3HW, request.prompts)
            save_standards(reward, folder)
    elif context.is_main_process:
        reward = run_reward(reward, folder)
    assert isinstance(reward, CompositeReward)
    known = None if reward.standards is None else {key: asdict(one) for key, one in reward.standards.items()}
    return replace(reward, standards={key: Standard(**one) for key, one in context.broadcast_object(known).items()})


SHAPE_KEYS = ("layout", "features", "channels", "grid", "time_only", "feature_maps", "velocity_change")


def init_times(tpm: TpmConfig, pipe: Any, arguments: dict[str, Any]) -> tuple[float, ...] | None:
    """The fixed schedule that the untrained TPM follows. None if the recipe has none."""
    return None if tpm.init_steps is None else _schedule(tpm.init_steps, tpm, pipe, arguments)


def init_times_low_gamma(tpm: TpmConfig, pipe: Any, arguments: dict[str, Any]) -> tuple[float, ...] | None:
    """The schedule of the untrained TPM at the lowest gamma. None if the recipe has none."""
    return None if tpm.init_steps_low_gamma is None else _schedule(tpm.init_steps_low_gamma, tpm, pipe, arguments)


def _schedule(steps: int, tpm: TpmConfig, pipe: Any, arguments: dict[str, Any]) -> tuple[float, ...]:
    if tpm.init_shift is None:
        return tuple(default_times(pipe, steps, arguments))
    return tuple(shifted(steps, tpm.init_shift).tolist())


def init_policy(
    recipe: Recipe,
    widths: FeatureWidths,
    start: tuple[float, ...] | None = None,
    fast: tuple[float, ...] | None = None,
) -> TimePredictionModule:
    """A new TPM, or the TPM that ``tpm.init_from`` names.

    Args:
        recipe: Recipe of the run.
        widths: Widths of the denoiser's features.
        start: Schedule that the untrained TPM follows. Default: none.
        fast: Schedule that it follows at the lowest gamma. Default: none.

    Raises:
        ConfigError: The recipe contradicts the shape of the TPM in ``tpm.init_from``.
    """
    if recipe.tpm.init_from:
        policy = load_policy(recipe.tpm.init_from)
        _check_shape(recipe, policy.shape)
        return policy.train()
    release = recipe.tpm.layout == "release"
    shape = TPMConfig(
        feature_channels=widths.feature_channels,
        temb_channels=widths.temb_channels,
        layout=recipe.tpm.layout,
        features=recipe.tpm.features,
        channels=recipe.tpm.channels,
        grid=recipe.tpm.grid,
        init_alpha=recipe.tpm.init_alpha,
        init_beta=recipe.tpm.init_beta,
        init_times=start,
        gamma_range=recipe.reward.gamma_range,
        init_times_low_gamma=fast,
        time_only=recipe.tpm.time_only,
        feature_maps=recipe.tpm.feature_maps,
        velocity_change=recipe.tpm.velocity_change and not recipe.tpm.time_only,
        token_grid=widths.token_grid if release else None,
    )
    return TimePredictionModule(shape, seed=derive_seed(recipe.seed, Stream.WEIGHTS) % 2**31)


def _check_shape(recipe: Recipe, shape: TPMConfig) -> None:
    """Refuses recipe keys that contradict the shape of the initial TPM.

    A key at its default is ignored. ``reward.gamma_range`` must be the same, because the TPM gets gamma as an input.
    """
    values, defaults, known = asdict(recipe.tpm), asdict(TpmConfig()), asdict(shape)
    pairs = {f"tpm.{k}": (values[k], known[k]) for k in SHAPE_KEYS if values[k] != defaults[k]}
    pairs["reward.gamma_range"] = (recipe.reward.gamma_range, shape.gamma_range)
    for key, (value, trained) in pairs.items():
        if value != trained:
            raise ConfigError(
                f"{key} is {value}, but the TPM in tpm.init_from={recipe.tpm.init_from} has {trained}. They must be "
                f"equal. Set {key}={trained}, or remove tpm.init_from."
            )
