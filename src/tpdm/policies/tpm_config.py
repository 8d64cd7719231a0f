"""The architecture of a TPM as data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch

from tpdm.core.errors import ConfigError
from tpdm.policies.gamma import check_range

STORAGE = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class TPMConfig:
    """Everything that fixes the architecture of a TPM.

    Attributes:
        feature_channels: D, width of the denoiser's tokens (SD3: 1536).
        temb_channels: E, width of its time embedding.
        features: which rows it reads under guidance: "conditional" ones, or "guided", u + w (c - u), as published.
        layout: "pooled" keeps the true 2-D layout and reads any resolution; "release" is the published one.
        channels: C, width of the TPM.
        grid: S, side of the pooled map; unused by "release".
        storage: dtype of the observation in replay; "fp32" for denoisers whose features exceed 65,504.
        init_alpha: initial raw output a (alpha = 1 + e^a); 2.5 as published.
        init_beta: initial raw output b; 1.0 as published. Together: mode .818.
        init_times: a schedule 1.0 > ... > 0.0 that the untrained TPM follows at its mode ("pooled" alone): what is
            trained is the departure from it, and init_alpha is not used; None starts with equal ratios everywhere.
        gamma_range: (low, high), the gammas that it is told of and serves ("pooled" alone); None: one gamma, untold.
        init_times_low_gamma: with both of them, the schedule followed at first at the low end; init_times is then that
            of the high end, and between them the ratios are interpolated; None follows init_times at every gamma.
        token_grid: (H, W) a "release" TPM was trained for, any other is refused; None takes every even grid.
        time_only: sees nothing but the time: the control "one learned schedule for every image".
        feature_maps: the token maps it reads, those that enter the first block and leave the last one, or the latter
            alone.
        norm_eps: added to the variance of the group norm; 1e-6 as published, 1e-5 in TPMs of format_version 1.
        velocity_change: it also reads how fast the prediction changed since the step before ("pooled" alone), the one
            thing that classical step-size control steers by.

    Raises:
        ConfigError: a size below 1, an unknown word, or an option of the other layout.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    feature_channels: int
    temb_channels: int
    features: Literal["conditional", "guided"] = "conditional"
    layout: Literal["pooled", "release"] = "pooled"
    channels: int = 128
    grid: int = 8
    storage: Literal["fp16", "fp32"] = "fp16"
    init_alpha: float = 2.5
    init_beta: float = 1.0
    init_times: tuple[float, ...] | None = None
    gamma_range: tuple[float, float] | None = None
    init_times_low_gamma: tuple[float, ...] | None = None
    token_grid: tuple[int, int] | None = None
    time_only: bool = False
    feature_maps: Literal["first_last", "last"] = "first_last"
    velocity_change: bool = False
    norm_eps: float = 1e-6

    @property
    def map_channels(self) -> int:
        """Channels of the map that it reads: D for each token map."""
        return self.feature_channels * (2 if self.feature_maps == "first_last" else 1)

    def __post_init__(self) -> None:
        for name in ("feature_channels", "temb_channels", "channels", "grid"):
            if getattr(self, name) < 1:
                raise ConfigError(f"got {name} = {getattr(self, name)}, expected at least 1; correct the TPM's shape.")
        if not self.norm_eps > 0:
            raise ConfigError(f"got norm_eps {self.norm_eps!r}, expected more than 0; correct the TPM's shape.")
        if self.layout not in ("pooled", "release"):
            raise ConfigError(f'got layout {self.layout!r}, expected "pooled" or "release"; correct the TPM\'s shape.')
        if self.features not in ("conditional", "guided"):
            raise ConfigError(
                f'got features {self.features!r}, expected "conditional" or "guided"; correct the TPM\'s shape.'
            )
        if self.storage not in STORAGE:
            raise ConfigError(f'got storage {self.storage!r}, expected "fp16" or "fp32"; correct the TPM\'s shape.')
        if self.feature_maps not in ("first_last", "last"):
            raise ConfigError(
                f'got feature_maps {self.feature_maps!r}, expected "first_last" or "last"; correct the TPM\'s shape.'
            )
        if self.layout == "release" and (self.velocity_change or self.feature_maps == "last"):
            raise ConfigError(
                'got velocity_change or feature_maps="last" with layout "release", expected "pooled"; set '
                'layout="pooled".'
            )
        if self.time_only and self.velocity_change:
            raise ConfigError("got velocity_change with time_only, expected one of them: the change is of the image.")
        if self.layout == "release" and self.time_only:
            raise ConfigError('got time_only with layout "release", expected "pooled"; set layout="pooled".')
        for name in ("init_times", "gamma_range", "init_times_low_gamma"):
            if self.layout == "release" and getattr(self, name) is not None:
                raise ConfigError(f'got {name} with layout "release", expected "pooled"; set layout="pooled".')
        if self.init_times_low_gamma is not None and (self.gamma_range is None or self.init_times is None):
            raise ConfigError(
                "got init_times_low_gamma alone, expected gamma_range and init_times beside it; give them too."
            )
        if self.gamma_range is not None:
            check_range(*self.gamma_range)
        for name in ("init_times", "init_times_low_gamma"):
            _check_times(name, getattr(self, name))
        if self.layout == "pooled" and self.token_grid is not None:
            raise ConfigError('got token_grid with layout "pooled", which reads every grid; set token_grid=None.')


def _check_times(name: str, times: tuple[float, ...] | None) -> None:
    if times is None:
        return
    falling = all(now > then for now, then in pairwise(times))
    if len(times) < 2 or not falling or times[-1] != 0.0 or times[0] > 1.0:
        raise ConfigError(
            f"got {name} {list(times)}, expected times that fall from at most 1.0 to 0.0; correct the TPM's shape."
        )
