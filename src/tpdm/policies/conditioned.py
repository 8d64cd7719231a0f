"""The dial in use: which gamma each image of a call is made for, and the policy that knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError
from tpdm.core.types import Decision, Features, Observation, Policy
from tpdm.policies.gamma import quality_to_gamma, steps_to_quality
from tpdm.policies.tpm import TimePredictionModule


@dataclass(frozen=True)
class ConditionedPolicy(Policy):
    """A TPM with a dial, set for every image of a call: a :class:`tpdm.core.types.Policy`.

    Attributes:
        predictor: the TPM.
        gamma_B: of each image of the call, fp32.
    """

    predictor: TimePredictionModule
    gamma_B: Tensor

    @property
    def reads_features(self) -> bool:
        """As the TPM does."""
        return self.predictor.reads_features

    @property
    def reads_change(self) -> bool:
        """As the TPM does."""
        return self.predictor.reads_change

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        """What the TPM sees, and the gamma of each image."""
        seen = self.predictor.observe(features, t_B, index_B, row_B, change_B)
        return replace(seen, gamma_B=self.gamma_B.to(t_B.device)[row_B])

    def quantize_for_storage(self, observation: Observation) -> Observation:
        """As the TPM does; the gammas stay fp32."""
        return self.predictor.quantize_for_storage(observation)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """As the TPM does."""
        return self.predictor.propose(observation, seeds)


def condition_policy(
    policy: Policy,
    images: int,
    gamma: float | Sequence[float] | None = None,
    quality: float | Sequence[float] | None = None,
) -> Policy:
    """The policy of one call.

    Args:
        policy: any.
        images: B of the call.
        gamma: one number for all or one per image, within the range of the TPM.
        quality: the same in [0, 1], by the TPM's calibration.

    Returns:
        The policy as it is where it has no dial and none is asked for; without gamma and quality a TPM with a dial
        gets the gamma of its artifact.

    Raises:
        ConfigError: there is no dial to set, both are given, the number of values does not fit, or one is out of range;
            or the TPM is in half precision.
    """
    if isinstance(policy, TimePredictionModule):
        policy.check_precision()
    dial = policy.shape.gamma_range if isinstance(policy, TimePredictionModule) else None
    if not isinstance(policy, TimePredictionModule) or dial is None:
        for name, value in (("gamma", gamma), ("quality", quality)):
            if value is not None:
                raise ConfigError(
                    f"got {name}={value}, but this policy has no dial: leave {name} out, or train a TPM with "
                    "reward.gamma_range."
                )
        return policy
    if gamma is not None and quality is not None:
        raise ConfigError(f"got both gamma={gamma} and quality={quality}, expected at most one: leave one out.")
    gammas = _per_image("gamma", gamma, images) if gamma is not None else _by_quality(policy, quality, images)
    for value in gammas:
        if not dial[0] <= value <= dial[1]:
            raise ConfigError(
                f"got gamma={value:g}, expected {dial[0]:g} to {dial[1]:g} as this TPM was trained for: correct it."
            )
    return ConditionedPolicy(policy, torch.tensor(gammas, dtype=torch.float32, device="cpu"))


def quality_for(policy: Policy, mean_steps: float) -> float:
    """The quality at which a TPM with a dial takes so many steps on average, as its validation measured them.

    Args:
        policy: a TPM with a calibrated dial.
        mean_steps: above 0; beyond the dial's reach its nearer end is given.

    Raises:
        ConfigError: there is no calibrated dial, or the number is not above 0.
    """
    artifact = policy.artifact if isinstance(policy, TimePredictionModule) else None
    if artifact is None or artifact.gamma_steps is None:
        raise ConfigError(
            f"got {mean_steps:g} mean steps for a policy without a calibrated dial, expected a TPM that was trained "
            "with reward.gamma_range: use one."
        )
    if not mean_steps > 0:
        raise ConfigError(f"got {mean_steps:g} mean steps, expected a number above 0: correct it.")
    return steps_to_quality(mean_steps, [steps for _, steps in artifact.gamma_steps])


def _by_quality(policy: TimePredictionModule, quality: float | Sequence[float] | None, images: int) -> list[float]:
    artifact = policy.artifact
    if quality is None:
        if artifact is None:
            raise ConfigError("got a TPM with a dial and no gamma, expected one: pass gamma or quality.")
        return [artifact.gamma] * images
    if artifact is None or artifact.gamma_steps is None:
        raise ConfigError(f"got quality={quality} for a TPM whose dial is not calibrated: pass gamma instead.")
    gammas, steps = zip(*artifact.gamma_steps, strict=True)
    return [quality_to_gamma(q, gammas, steps) for q in _per_image("quality", quality, images)]


def _per_image(name: str, value: float | Sequence[float], images: int) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * images
    if len(values) != images:
        raise ConfigError(f"got {len(values)} values of {name} for {images} images, expected one for all or one each.")
    return values
