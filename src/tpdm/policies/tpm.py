"""The Time Prediction Module: features of one denoising step in, a Beta over the ratio t_next / t out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpdm.core.device import average_pool
from tpdm.core.errors import BackboneError, ConfigError, NonFiniteError
from tpdm.core.types import Decision, Features, Observation, Policy
from tpdm.policies import beta
from tpdm.policies.beta import BetaParams
from tpdm.policies.features import reduce_features
from tpdm.policies.gamma import gamma_position
from tpdm.policies.layers import FRESH, TimeAdaptiveNorm, fit_over_time, full_precision, hat_basis, schedule_logit
from tpdm.policies.tpm_config import STORAGE, TPMConfig

if TYPE_CHECKING:
    from tpdm.policies.pretrained_config import PretrainedConfig

TIME_SCALARS = 4  # t, log t, decision index / 16, 1
DIAL_SCALARS = 2  # its position and the square of it
CHANGE_BOUND = 5.0  # standard deviations
CHANGE_FLOOR = 1e-6  # below it the prediction did not change at all
TIME_STD = 0.3  # initial std of their weights: four scalars must be heard beside E embedding channels
PUBLISHED_STD = 0.02
PUBLISHED_POOL = 16  # side of the average pool before the global max pool
STD_FLOOR = 1e-2  # features are about 1; one that hardly varies is not blown up
TIME_KNOTS = 24  # of the table of what the time alone puts into the time embedding


class TimePredictionModule(nn.Module, Policy):
    """The TPM (4,097,154 parameters in the published shape), a :class:`tpdm.core.types.Policy`.

    Args:
        shape: the architecture.
        seed: of the initial weights; the global generator is left alone.

    Attributes:
        artifact: what it was trained for, where it was loaded from a folder.
    """

    map_mean: Tensor
    map_std: Tensor
    temb_time: Tensor
    temb_std: Tensor
    change_time: Tensor
    change_std: Tensor

    @torch.random.fork_rng(devices=[])  # layers draw weights when they are made, which are drawn again below
    def __init__(self, shape: TPMConfig, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.artifact: PretrainedConfig | None = None
        C, extra = shape.channels, _scalars(shape)
        self.conv1 = nn.Conv2d(shape.map_channels, C, 3, padding=1, **FRESH)
        self.norm1 = TimeAdaptiveNorm(C, shape.temb_channels + extra, shape.norm_eps)
        self.conv2 = nn.Conv2d(C, C, 3, stride=2, padding=1, **FRESH)
        self.fc1 = nn.Linear(C if shape.layout == "release" else 2 * C + shape.temb_channels + extra, C, **FRESH)
        self.fc2 = nn.Linear(C, 2, **FRESH)
        if shape.layout == "pooled":
            self.register_buffer("map_mean", torch.zeros(shape.map_channels, **FRESH))
            self.register_buffer("map_std", torch.ones(shape.map_channels, **FRESH))
            self.register_buffer("temb_time", torch.zeros(TIME_KNOTS, shape.temb_channels, **FRESH))
            self.register_buffer("temb_std", torch.ones(shape.temb_channels, **FRESH))
        if shape.velocity_change:
            self.register_buffer("change_time", torch.zeros(TIME_KNOTS, **FRESH))
            self.register_buffer("change_std", torch.ones((), **FRESH))
        self._initialize(seed)

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        """Biases 0, last bias (init_alpha, init_beta): r = .818, moved a little by what is seen.

        "release" is N(0, .02) throughout, as published. "pooled" scales the layers below the last by their inputs
        (variance 1 / fan-in): .02 suits thousands of channels, and at a width of 160 it lets so little of the
        features through that hundreds of updates move all images alike.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in (self.conv1, self.norm1.linear, self.conv2, self.fc1, self.fc2):
            weight, bias = module.parameters()
            scaled = self.shape.layout == "pooled" and module is not self.fc2
            std = weight[0].numel() ** -0.5 if scaled else PUBLISHED_STD
            weight.normal_(0, std, generator=generator)
            bias.zero_()
        if self.shape.layout == "pooled":
            self.norm1.linear.weight[:, -_scalars(self.shape) :].normal_(0, TIME_STD, generator=generator)
        first = self.shape.init_alpha if self.shape.init_times is None else self.shape.init_beta
        self.fc2.bias.copy_(torch.tensor([first, self.shape.init_beta], **FRESH))

    @property
    def reads_features(self) -> bool:
        """False for ``time_only``: no hooks, nothing to store."""
        return not self.shape.time_only

    @property
    def reads_change(self) -> bool:
        """Whether it reads how fast the prediction changes."""
        return self.shape.velocity_change

    @torch.no_grad()
    def calibrate(self, observation: Observation) -> None:
        """Measures mean and spread of each feature, which ``forward`` then takes out ("pooled" alone; once, at first).

        What differs between images is a small part of the features (.3 % of the power of tinyworld's time embedding,
        and 7 % of it after its mean is gone, because the time is in it): left as they are, an update moves all images
        alike. So the part of the embedding that follows from the time goes out too, by a table over times; the time
        itself is given beside it.

        Args:
            observation: of many images at many times, of the untrained policy.
        """
        if self.shape.layout == "release" or observation.map_BCHW is None or observation.temb_BE is None:
            return
        device = self.fc2.weight.device
        map_XC = observation.map_BCHW.to(device, torch.float32).movedim(1, -1).flatten(0, 2)
        self.map_mean.copy_(map_XC.mean(0))
        self.map_std.copy_((map_XC.var(0, correction=0) + STD_FLOOR**2).sqrt())
        table_RE, std_E = fit_over_time(observation.temb_BE, observation.t_B, TIME_KNOTS, STD_FLOOR)
        self.temb_time.copy_(table_RE)
        self.temb_std.copy_(std_E)
        if self.shape.velocity_change and observation.change_B is not None:
            known_B = observation.change_B > 0
            if not known_B.any():  # every image took a single step
                return
            log_B1 = observation.change_B[known_B, None].clamp_min(CHANGE_FLOOR).log()
            table_R1, std_1 = fit_over_time(log_B1, observation.t_B[known_B], TIME_KNOTS, STD_FLOOR)
            self.change_time.copy_(table_R1[:, 0])
            self.change_std.copy_(std_1[0])

    @torch.no_grad()
    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        """Reduces features to what ``propose`` and ``evaluate`` read: normalized, pooled, fp32.

        Args:
            features: of the evaluation at ``t_B``; ignored (None is fine) under ``time_only``.
            t_B: current time, fp32.
            index_B: decisions made so far, int64.
            row_B: position in the pipeline call, int64.
            change_B: of the prediction, for a TPM with ``change``; None at the first evaluation, where 0 stands for it.

        Returns:
            map (B, 2D, S, S) for "pooled" whatever the resolution, (B, 2D, H, W) for "release"; temb (B, E).

        Raises:
            BackboneError: no features, other widths than the TPM's, or a token grid it was not trained for.
        """
        if not self.reads_features:
            map_BCHW, temb_BE = None, None
        else:
            map_BCHW, temb_BE = reduce_features(self.shape, features)
        if self.reads_change:
            change_B = torch.zeros_like(t_B, dtype=torch.float32) if change_B is None else change_B.float()
        return Observation(map_BCHW, temb_BE, t_B.float(), index_B, row_B, change_B=change_B)

    def quantize_for_storage(self, observation: Observation) -> Observation:
        """The observation as replay keeps it, features in the storage dtype: fp16 halves the bytes."""
        if observation.map_BCHW is None or observation.temb_BE is None:
            return observation
        dtype = STORAGE[self.shape.storage]
        return replace(observation, map_BCHW=observation.map_BCHW.to(dtype), temb_BE=observation.temb_BE.to(dtype))

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Raw outputs (a_B, b_B) of eq. (4), fp32: alpha = 1 + e^a, beta = 1 + e^b.

        Raises:
            ConfigError: as ``check_precision``.
        """
        self.check_precision()
        device = self.fc2.weight.device
        t_B = observation.t_B.to(device)
        with full_precision(device.type):
            map_BCHW, temb_BE = self._standardized(observation, t_B)
            condition_BE = self._condition(observation, t_B, temb_BE)
            x = F.silu(self.norm1(self.conv1(map_BCHW), condition_BE))
            pooled_BC = self._pooled(self.conv2(x), condition_BE)
            a_B, b_B = self.fc2(F.silu(self.fc1(pooled_BC))).unbind(1)
            if self.shape.init_times is not None:
                a_B = a_B + self._start_logit(t_B.float(), self._dial(observation))
        return a_B, b_B

    def check_precision(self) -> None:
        """Refuses weights that somebody rounded: fp32 is what was trained, and what times are decided in.

        Raises:
            ConfigError: ``to(dtype)``, ``half()`` or the like changed the weights.
        """
        dtype = self.fc2.weight.dtype
        if dtype != torch.float32:
            raise ConfigError(
                f"got a TPM in {dtype}, expected torch.float32, which it decides in whatever the pipeline's dtype is:"
                " load it again, and move it with .to(device) alone."
            )

    def _standardized(self, observation: Observation, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Map and time embedding in fp32, as ``calibrate`` measured their usual values; zeros under ``time_only``."""
        shape = self.shape
        if observation.map_BCHW is None or observation.temb_BE is None:
            map_BCHW = t_B.new_zeros(len(t_B), shape.map_channels, shape.grid, shape.grid)
            return map_BCHW, t_B.new_zeros(len(t_B), shape.temb_channels)
        # A copy, so that what follows may be done in place: fresh memory for every step of it would cost more than
        # the arithmetic.
        map_BCHW = observation.map_BCHW.to(t_B.device, torch.float32, copy=True)
        temb_BE = observation.temb_BE.to(t_B.device, torch.float32)
        if shape.layout == "pooled":
            map_BCHW.sub_(self.map_mean[:, None, None]).div_(self.map_std[:, None, None])
            temb_BE = (temb_BE - hat_basis(t_B, TIME_KNOTS) @ self.temb_time) / self.temb_std
        return map_BCHW, temb_BE

    def _condition(self, observation: Observation, t_B: Tensor, temb_BE: Tensor) -> Tensor:
        """What the norm is adapted by: the time embedding, and beside it ("pooled") what it says too quietly."""
        condition_BE = F.silu(temb_BE)
        if self.shape.layout == "release":
            return condition_BE
        index_B = observation.index_B.to(t_B.device, t_B.dtype) / 16
        scalars = [t_B, t_B.clamp_min(1e-4).log(), index_B, torch.ones_like(t_B)]
        gamma_position_B = self._dial(observation)
        scalars += [] if gamma_position_B is None else [gamma_position_B, gamma_position_B.square()]
        scalars += [self._change(observation.change_B, t_B)] if self.shape.velocity_change else []
        return torch.cat([condition_BE, torch.stack(scalars, dim=1)], dim=1)

    def _pooled(self, x: Tensor, condition_BE: Tensor) -> Tensor:
        """One vector per image of the last map (B, C, H, W)."""
        H, W = x.shape[2:]
        if max(H, W) > PUBLISHED_POOL:
            x = average_pool(x, (min(PUBLISHED_POOL, H), min(PUBLISHED_POOL, W)))
        pooled_BC = x.amax((2, 3))
        if self.shape.layout == "release":
            return pooled_BC
        # A maximum cannot count: how much there is in the picture is in the mean. And the time embedding carries the
        # pooled text, the plainest word on how hard the prompt is: it has a short way, too.
        return torch.cat([pooled_BC, x.mean((2, 3)), condition_BE], dim=1)

    def _dial(self, observation: Observation) -> Tensor | None:
        """Position of each image between the ends of the range, in [-1, 1]; None for a TPM without a dial."""
        if self.shape.gamma_range is None:
            return None
        if observation.gamma_B is None:
            raise BackboneError("got no gamma for a TPM with a dial, expected one per image; pass gamma or quality.")
        return gamma_position(observation.gamma_B.to(self.fc2.weight.device), *self.shape.gamma_range)

    def _change(self, change_B: Tensor | None, t_B: Tensor) -> Tensor:
        """Log of the change beside the usual one at this time, in standard deviations; 0 where none is known."""
        if change_B is None:
            raise BackboneError("got no change of the prediction, expected one per image; pass observe one.")
        change_B = change_B.to(t_B.device)
        usual_B = hat_basis(t_B, TIME_KNOTS) @ self.change_time
        unusual_B = (change_B.clamp_min(CHANGE_FLOOR).log() - usual_B) / self.change_std
        return torch.where(change_B > 0, unusual_B.clamp(-CHANGE_BOUND, CHANGE_BOUND), torch.zeros_like(unusual_B))

    def _start_logit(self, t_B: Tensor, gamma_position_B: Tensor | None) -> Tensor:
        """logit(t_next / t) of the schedule that the untrained TPM follows."""
        assert self.shape.init_times is not None
        slow_B = schedule_logit(t_B, self.shape.init_times)
        if self.shape.init_times_low_gamma is None or gamma_position_B is None:
            return slow_B
        return torch.lerp(schedule_logit(t_B, self.shape.init_times_low_gamma), slow_B, (gamma_position_B + 1) / 2)

    @torch.no_grad()
    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """Eqs. (5) and (6): t_next = r t with r sampled, or the mode sigmoid(a - b).

        Args:
            observation: of B images.
            seeds: one per image, the draw depends on it and on the decision index alone; None takes the mode.

        Returns:
            The decision in fp32 on the device of ``observation.t_B``.

        Raises:
            NonFiniteError: NaN or infinity reached the output.
        """
        a_B, b_B = self(observation)
        finite_B = torch.isfinite(a_B) & torch.isfinite(b_B)
        if not finite_B.all():
            first = int(observation.row_B[int((~finite_B).nonzero()[0])])
            raise NonFiniteError(
                f"got NaN or infinity from the TPM for image {first}, expected finite features and weights; run the"
                ' denoiser in bfloat16, or use storage="fp32".',
                first,
            )
        params = beta.beta_params(a_B, b_B)
        if seeds is None:
            action_B = beta.mode(params).clamp(beta.ACTION_MIN, beta.ACTION_MAX)
        else:
            action_B = beta.sample(params, seeds, observation.index_B)
        logp_B = beta.log_prob(params, action_B)
        t_B = observation.t_B.float()
        action_B = action_B.to(t_B.device)
        return Decision(action_B * t_B, action_B, logp_B.to(t_B.device))

    def evaluate(self, observation: Observation, action_B: Tensor) -> tuple[Tensor, Tensor, BetaParams]:
        """Scores stored actions with gradients, for the policy-ratio objective (7).

        Args:
            observation: as stored.
            action_B: r as stored, fp32.

        Returns:
            (log-probability (B,), entropy (B,), parameters), fp32; equal to ``propose`` before any update.
        """
        params = beta.beta_params(*self(observation))
        return beta.log_prob(params, action_B.to(params.alpha_B.device)), beta.entropy(params), params


def _scalars(shape: TPMConfig) -> int:
    """Numbers that stand beside the time embedding."""
    if shape.layout == "release":
        return 0
    return TIME_SCALARS + (0 if shape.gamma_range is None else DIAL_SCALARS) + int(shape.velocity_change)
