"""The Time Prediction Module (TPM): from features of one step to a Beta distribution of the ratio t_next / t."""

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
from tpdm.policies.layers import FRESH, TimeAdaptiveNorm, fit_over_time, full_precision, hat_basis, initial_logit
from tpdm.policies.tpm_config import STORAGE, TPMConfig

if TYPE_CHECKING:
    from tpdm.policies.pretrained_config import PretrainedConfig

CHANGE_BOUND = 5.0  # standard deviations
CHANGE_FLOOR = 1e-6  # smaller changes of the prediction count as none
TIME_STD = 0.3  # initial std of the weights of scalars, so that they have an effect next to E embedding channels
PUBLISHED_STD = 0.02
PUBLISHED_POOL = 16  # side of the average pool before the global max pool
STD_FLOOR = 1e-2  # features are about 1, and one that hardly varies is not magnified
TIME_KNOTS = 24  # knots of the table of the time embedding over the time


class TimePredictionModule(nn.Module, Policy):
    """The TPM: after each step it decides the time of the next one. The published shape has 4,097,154 parameters.

    Args:
        shape: Architecture.
        seed: Seed of the initial weights, >= 0. The global generator is not used.

    Attributes:
        artifact: Saved config of a TPM that was loaded from a folder, else None.

    Example:
        >>> from tpdm.policies.tpm_config import TPMConfig
        >>> policy = TimePredictionModule(TPMConfig(feature_channels=6, temb_channels=5, channels=8, grid=2))
        >>> features = Features(torch.rand(1, 6, 4, 4), torch.rand(1, 6, 4, 4), torch.rand(1, 5))
        >>> row_B = torch.zeros(1, dtype=torch.int64)
        >>> decision = policy.propose(policy.observe(features, torch.ones(1), row_B, row_B), seeds=None)
        >>> bool(0 < decision.t_next_B < 1)
        True
    """

    map_mean: Tensor
    map_std: Tensor
    temb_time: Tensor
    temb_std: Tensor
    change_time: Tensor
    change_std: Tensor

    @torch.random.fork_rng(devices=[])  # layers draw weights at creation, which are drawn again below
    def __init__(self, shape: TPMConfig, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.artifact: PretrainedConfig | None = None
        C, extra = shape.channels, shape.num_scalars
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
        """Draw weights; biases are 0, and the last bias is (init_alpha, init_beta), so that r is near .818.

        "release" draws from N(0, .02), as published. "pooled" scales the layers below the last by their inputs
        (variance 1 / fan-in). .02 suits thousands of channels. At a width of 160 so little of the features passes that
        hundreds of updates move all images the same way.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in (self.conv1, self.norm1.linear, self.conv2, self.fc1, self.fc2):
            weight, bias = module.parameters()
            scaled = self.shape.layout == "pooled" and module is not self.fc2
            std = weight[0].numel() ** -0.5 if scaled else PUBLISHED_STD
            weight.normal_(0, std, generator=generator)
            bias.zero_()
        if self.shape.layout == "pooled":
            self.norm1.linear.weight[:, -self.shape.num_scalars :].normal_(0, TIME_STD, generator=generator)
        first = self.shape.init_alpha if self.shape.init_times is None else self.shape.init_beta
        self.fc2.bias.copy_(torch.tensor([first, self.shape.init_beta], **FRESH))

    @property
    def reads_features(self) -> bool:
        """Whether the TPM reads features. False for ``time_only``, which needs no hooks and stores nothing."""
        return not self.shape.time_only

    @property
    def reads_change(self) -> bool:
        """Whether the TPM reads how fast the prediction changes."""
        return self.shape.velocity_change

    @torch.no_grad()
    def calibrate(self, observation: Observation) -> None:
        """Measure mean and spread of each feature, which ``forward`` then removes. Call it once, before training.

        Images differ in a small part of the features: .3 % of the power of tinyworld's time embedding, and 7 % without
        its mean, because it contains the time. Without calibration, an update moves all images the same way. A table
        over times therefore also removes the part of the embedding that follows from the time. The TPM gets the time
        itself separately. "release" TPMs are not calibrated.

        Args:
            observation: Observations of many images at many times, from the untrained TPM.
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
            if not known_B.any():  # every image took one step
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
        """Reduce features to what ``propose`` and ``evaluate`` read: normalized, pooled, fp32.

        Args:
            features: Features of the evaluation at ``t_B``. ``time_only`` ignores them, so that None is allowed.
            t_B: Current times, fp32.
            index_B: Number of decisions made before, int64.
            row_B: Rows of the images in the pipeline call, int64.
            change_B: Change of the prediction, for a TPM with ``change``. None at the first evaluation, which reads 0.

        Returns:
            Map (B, 2D, S, S) for "pooled" at every resolution, (B, 2D, H, W) for "release". Time embedding (B, E).

        Raises:
            BackboneError: There are no features, their widths differ from the TPM's, or the TPM was not trained for the
                token grid.
        """
        if not self.reads_features:
            map_BCHW, temb_BE = None, None
        else:
            map_BCHW, temb_BE = reduce_features(self.shape, features)
        if self.reads_change:
            change_B = torch.zeros_like(t_B, dtype=torch.float32) if change_B is None else change_B.float()
        return Observation(map_BCHW, temb_BE, t_B.float(), index_B, row_B, change_B=change_B)

    def quantize_for_storage(self, observation: Observation) -> Observation:
        """Convert features to the storage dtype, as a rollout stores them. fp16 halves the bytes."""
        if observation.map_BCHW is None or observation.temb_BE is None:
            return observation
        dtype = STORAGE[self.shape.storage]
        return replace(observation, map_BCHW=observation.map_BCHW.to(dtype), temb_BE=observation.temb_BE.to(dtype))

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Compute the raw outputs a and b of eq. (4): alpha = 1 + e^a, beta = 1 + e^b.

        Args:
            observation: Observations of B images.

        Returns:
            (a_B, b_B), fp32.

        Raises:
            ConfigError: The weights are not fp32.
        """
        self.check_precision()
        device = self.fc2.weight.device
        t_B = observation.t_B.to(device)
        with full_precision(device.type):
            map_BCHW, temb_BE = self._standardize(observation, t_B)
            condition_BE = self._condition(observation, t_B, temb_BE)
            x = F.silu(self.norm1(self.conv1(map_BCHW), condition_BE))
            pooled_BC = self._pooled(self.conv2(x), condition_BE)
            a_B, b_B = self.fc2(F.silu(self.fc1(pooled_BC))).unbind(1)
            if self.shape.init_times is not None:
                position_B = self._gamma_position(observation)
                a_B = a_B + initial_logit(
                    t_B.float(), self.shape.init_times, self.shape.init_times_low_gamma, position_B
                )
        return a_B, b_B

    def check_precision(self) -> None:
        """Check that the weights are fp32, as they were trained.

        Raises:
            ConfigError: ``to(dtype)``, ``half()`` or a similar call changed the weights.
        """
        dtype = self.fc2.weight.dtype
        if dtype != torch.float32:
            raise ConfigError(
                f"The TPM is in {dtype}. It must be torch.float32, for every dtype of the pipeline. Load it again, and "
                "move it with .to(device) only."
            )

    def _standardize(self, observation: Observation, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Map and time embedding in fp32, without the usual values of ``calibrate``. Zeros for ``time_only``."""
        shape = self.shape
        if observation.map_BCHW is None or observation.temb_BE is None:
            map_BCHW = t_B.new_zeros(len(t_B), shape.map_channels, shape.grid, shape.grid)
            return map_BCHW, t_B.new_zeros(len(t_B), shape.temb_channels)
        # A copy, so that the next operations work in place. New memory for each would cost more than the arithmetic.
        map_BCHW = observation.map_BCHW.to(t_B.device, torch.float32, copy=True)
        temb_BE = observation.temb_BE.to(t_B.device, torch.float32)
        if shape.layout == "pooled":
            map_BCHW.sub_(self.map_mean[:, None, None]).div_(self.map_std[:, None, None])
            temb_BE = (temb_BE - hat_basis(t_B, TIME_KNOTS) @ self.temb_time) / self.temb_std
        return map_BCHW, temb_BE

    def _condition(self, observation: Observation, t_B: Tensor, temb_BE: Tensor) -> Tensor:
        """Condition of the norm: the time embedding, and for "pooled" also scalars that are weak in it."""
        condition_BE = F.silu(temb_BE)
        if self.shape.layout == "release":
            return condition_BE
        index_B = observation.index_B.to(t_B.device, t_B.dtype) / 16
        scalars = [t_B, t_B.clamp_min(1e-4).log(), index_B, torch.ones_like(t_B)]
        position_B = self._gamma_position(observation)
        scalars += [] if position_B is None else [position_B, position_B.square()]
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
        # A maximum cannot count, so the mean is added: it contains how much is in the image. The time embedding is
        # added because it contains the pooled text, which says how hard the prompt is.
        return torch.cat([pooled_BC, x.mean((2, 3)), condition_BE], dim=1)

    def _gamma_position(self, observation: Observation) -> Tensor | None:
        """Position of each image's gamma in the range, in [-1, 1]. None if the TPM is not gamma-conditioned."""
        if self.shape.gamma_range is None:
            return None
        if observation.gamma_B is None:
            raise BackboneError("gamma is missing. This TPM is gamma-conditioned. Pass gamma or quality per image.")
        return gamma_position(observation.gamma_B.to(self.fc2.weight.device), *self.shape.gamma_range)

    def _change(self, change_B: Tensor | None, t_B: Tensor) -> Tensor:
        """Log of the change minus the usual one at this time, in standard deviations. 0 if it is unknown."""
        if change_B is None:
            raise BackboneError("change_B is missing. This TPM reads the change of the prediction. Pass it to observe.")
        change_B = change_B.to(t_B.device)
        usual_B = hat_basis(t_B, TIME_KNOTS) @ self.change_time
        unusual_B = (change_B.clamp_min(CHANGE_FLOOR).log() - usual_B) / self.change_std
        return torch.where(change_B > 0, unusual_B.clamp(-CHANGE_BOUND, CHANGE_BOUND), torch.zeros_like(unusual_B))

    @torch.no_grad()
    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """Decide the next times: t_next = r t with r sampled, or with the mode sigmoid(a - b) (eqs. 5 and 6).

        Args:
            observation: Observations of B images.
            seeds: One seed per image. A draw depends only on the seed and the decision index. None takes the mode.

        Returns:
            The decision, fp32, on the device of ``observation.t_B``.

        Raises:
            NonFiniteError: NaN or infinity reached the output.
        """
        a_B, b_B = self(observation)
        finite_B = torch.isfinite(a_B) & torch.isfinite(b_B)
        if not finite_B.all():
            first = int(observation.row_B[int((~finite_B).nonzero()[0])])
            raise NonFiniteError(
                f"The TPM returned NaN or infinity for image {first}. Features and weights must be finite. Run the "
                'denoiser in bfloat16, or use storage="fp32".',
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
        """Score stored actions with gradients, for the policy-ratio objective (eq. 7).

        Args:
            observation: Stored observations.
            action_B: Stored actions r, fp32.

        Returns:
            (log-probability (B,), entropy (B,), parameters), fp32. Before any update they equal those of ``propose``.
        """
        params = beta.beta_params(*self(observation))
        return beta.log_prob(params, action_B.to(params.alpha_B.device)), beta.entropy(params), params
