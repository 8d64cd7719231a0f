"""The architecture of a TPM as data, with checks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch

from tpdm.core.errors import ConfigError
from tpdm.policies.gamma import check_range

TIME_SCALARS = 4  # t, log t, decision index / 16, 1
GAMMA_SCALARS = 2  # the position of gamma and its square
STORAGE = {"fp16": torch.float16, "fp32": torch.float32}
_WORDS = {
    "layout": ("pooled", "release"),
    "features": ("conditional", "guided"),
    "storage": tuple(STORAGE),
    "feature_maps": ("first_last", "last"),
}


@dataclass(frozen=True)
class TPMConfig:
    """Architecture of a TPM.

    Attributes:
        feature_channels: Width D of the denoiser's tokens (SD3: 1536).
        temb_channels: Width E of its time embedding.
        features: Rows that are read under guidance: "conditional", or "guided", u + w (c - u), as published.
        layout: "pooled" keeps the true 2-D layout and reads any resolution. "release" is the published layout.
        channels: Width C of the TPM.
        grid: Side S of the pooled map. "release" does not use it.
        storage: dtype of stored observations, "fp16" or "fp32". Denoisers with features above 65,504 need "fp32".
        init_alpha: Initial raw output a (alpha = 1 + e^a). 2.5 as published.
        init_beta: Initial raw output b. 1.0 as published. Together: mode .818.
        init_times: Schedule 1.0 > ... > 0.0 that the untrained TPM follows at its mode ("pooled" only). Training
            learns the departure from it, and init_alpha is not used. None starts with equal ratios everywhere.
        gamma_range: (low, high) of the gammas that the TPM reads and serves ("pooled" only). None: one fixed gamma.
        init_times_low_gamma: With ``gamma_range`` and ``init_times``, the initial schedule at the low end of the range.
            ``init_times`` is then that of the high end, and ratios are interpolated between them. None uses
            ``init_times`` at every gamma.
        token_grid: (H, W) that a "release" TPM was trained for. Others are an error. None accepts every even grid.
        time_only: Whether the TPM reads only the time. This is the baseline "one learned schedule for every image".
        feature_maps: Token maps that are read: "first_last" (entering the first block, leaving the last), or "last".
        norm_eps: Number added to the variance of the group norm. 1e-6 as published, 1e-5 in format_version 1.
        velocity_change: Whether the TPM also reads how fast the prediction changed since the step before ("pooled"
            only). It is the quantity that classical step-size control uses.

    Raises:
        ConfigError: A size is below 1, a word is unknown, or an option belongs to the other layout.

    Example:
        >>> TPMConfig(feature_channels=1536, temb_channels=1536).map_channels
        3072
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
        """Channels of the map that is read: D for each token map."""
        return self.feature_channels * (2 if self.feature_maps == "first_last" else 1)

    @property
    def num_scalars(self) -> int:
        """Number of scalars that are appended to the time embedding."""
        if self.layout == "release":
            return 0
        return TIME_SCALARS + (0 if self.gamma_range is None else GAMMA_SCALARS) + int(self.velocity_change)

    def __post_init__(self) -> None:
        for name in ("feature_channels", "temb_channels", "channels", "grid"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}. It must be at least 1. Correct the TPM's shape.")
        if not self.norm_eps > 0:
            raise ConfigError(f"norm_eps is {self.norm_eps!r}. It must be above 0. Try norm_eps=1e-6.")
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}. It must be {words[0]!r} or {words[1]!r}. Correct it."
                )
        if self.time_only and self.velocity_change:
            raise ConfigError(
                "velocity_change and time_only are both set. velocity_change reads the image. Set one of them to False."
            )
        pooled_only = {
            "velocity_change": self.velocity_change,
            "feature_maps='last'": self.feature_maps == "last",
            "time_only": self.time_only,
            **{name: getattr(self, name) is not None for name in ("init_times", "gamma_range", "init_times_low_gamma")},
        }
        if self.layout == "release" and any(pooled_only.values()):
            name = next(name for name, used in pooled_only.items() if used)
            raise ConfigError(f"layout is 'release', but {name} is set. It needs layout 'pooled'. Set layout='pooled'.")
        if self.layout == "pooled" and self.token_grid is not None:
            raise ConfigError("token_grid is set with layout 'pooled', which reads every grid. Set token_grid=None.")
        if self.init_times_low_gamma is not None and (self.gamma_range is None or self.init_times is None):
            raise ConfigError("init_times_low_gamma is set. It needs gamma_range and init_times, too. Set all three.")
        if self.gamma_range is not None:
            check_range(*self.gamma_range)
        for name in ("init_times", "init_times_low_gamma"):
            _check_times(name, getattr(self, name))


def _check_times(name: str, times: tuple[float, ...] | None) -> None:
    if times is None:
        return
    falling = all(now > then for now, then in pairwise(times))
    if len(times) < 2 or not falling or times[-1] != 0.0 or times[0] > 1.0:
        raise ConfigError(
            f"{name} is {list(times)}. Times must fall strictly from at most 1.0 to 0.0. Try [1.0, 0.5, 0.0]."
        )
