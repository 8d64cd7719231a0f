"""Gamma conditioning of one pipeline call: the gamma of each image, from ``gamma`` or ``quality``."""

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
    """A gamma-conditioned TPM with the gamma of each image of a call.

    Attributes:
        predictor: The TPM.
        gamma_B: Gamma of each image of the call, fp32.
    """

    predictor: TimePredictionModule
    gamma_B: Tensor

    @property
    def reads_features(self) -> bool:
        """As for the TPM."""
        return self.predictor.reads_features

    @property
    def reads_change(self) -> bool:
        """As for the TPM."""
        return self.predictor.reads_change

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        """Return the observation of the TPM, with the gamma of each image."""
        seen = self.predictor.observe(features, t_B, index_B, row_B, change_B)
        return replace(seen, gamma_B=self.gamma_B.to(t_B.device)[row_B])

    def quantize_for_storage(self, observation: Observation) -> Observation:
        """As for the TPM. Gammas stay fp32."""
        return self.predictor.quantize_for_storage(observation)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """As for the TPM."""
        return self.predictor.propose(observation, seeds)


def condition_policy(
    policy: Policy,
    images: int,
    gamma: float | Sequence[float] | None = None,
    quality: float | Sequence[float] | None = None,
) -> Policy:
    """Create the policy of one call.

    Args:
        policy: Any policy.
        images: Number of images B of the call.
        gamma: One gamma for all images, or one per image, within the range of the TPM.
        quality: One quality setting in [0, 1] for all images, or one per image, converted by the TPM's calibration.

    Returns:
        A gamma-conditioned TPM with the gammas of the images. Without gamma and quality it uses the gamma of its saved
        config. A policy that is not gamma-conditioned is returned unchanged.

    Raises:
        ConfigError: The policy is not gamma-conditioned but gamma or quality is given, both are given, the number of
            values does not fit, a value is out of range, or the TPM is in half precision.

    Example:
        >>> from tpdm.policies.tpm_config import TPMConfig
        >>> policy = TimePredictionModule(TPMConfig(6, 5, gamma_range=(0.9, 0.99)))
        >>> condition_policy(policy, images=2, gamma=0.95).gamma_B
        tensor([0.9500, 0.9500])
    """
    if isinstance(policy, TimePredictionModule):
        policy.check_precision()
    gamma_range = policy.shape.gamma_range if isinstance(policy, TimePredictionModule) else None
    if not isinstance(policy, TimePredictionModule) or gamma_range is None:
        for name, value in (("gamma", gamma), ("quality", quality)):
            if value is not None:
                raise ConfigError(
                    f"{name} is {value}, but this policy is not gamma-conditioned. Leave {name} out, or train a TPM "
                    "with reward.gamma_range."
                )
        return policy
    if gamma is not None and quality is not None:
        raise ConfigError(f"gamma is {gamma} and quality is {quality}. At most one may be given. Leave one out.")
    gammas = _per_image("gamma", gamma, images) if gamma is not None else _by_quality(policy, quality, images)
    for value in gammas:
        if not gamma_range[0] <= value <= gamma_range[1]:
            raise ConfigError(
                f"gamma is {value:g}. This TPM was trained for {gamma_range[0]:g} to {gamma_range[1]:g}. Correct it."
            )
    return ConditionedPolicy(policy, torch.tensor(gammas, dtype=torch.float32, device="cpu"))


def quality_for(policy: Policy, mean_steps: float) -> float:
    """Return the quality setting at which a TPM takes a mean number of steps, as its validation measured them.

    Args:
        policy: A gamma-conditioned TPM with a calibration.
        mean_steps: Mean number of steps, > 0. Numbers outside the calibration give the nearer end.

    Raises:
        ConfigError: The policy has no calibration, or the number is not above 0.
    """
    artifact = policy.artifact if isinstance(policy, TimePredictionModule) else None
    if artifact is None or artifact.gamma_steps is None:
        raise ConfigError(
            f"mean_steps is {mean_steps:g}, but this policy has no calibration. It must be a TPM that was trained with "
            "reward.gamma_range. Use one."
        )
    if not mean_steps > 0:
        raise ConfigError(f"mean_steps is {mean_steps:g}. It must be above 0. Try mean_steps=8.")
    return steps_to_quality(mean_steps, [steps for _, steps in artifact.gamma_steps])


def _by_quality(policy: TimePredictionModule, quality: float | Sequence[float] | None, images: int) -> list[float]:
    artifact = policy.artifact
    if quality is None:
        if artifact is None:
            raise ConfigError("gamma is missing. This TPM is gamma-conditioned and needs one. Pass gamma or quality.")
        return [artifact.gamma] * images
    if artifact is None or artifact.gamma_steps is None:
        raise ConfigError(f"quality is {quality}, but this TPM is not calibrated. Pass gamma instead.")
    gammas, steps = zip(*artifact.gamma_steps, strict=True)
    return [quality_to_gamma(q, gammas, steps) for q in _per_image("quality", quality, images)]


def _per_image(name: str, value: float | Sequence[float], images: int) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * images
    if len(values) != images:
        raise ConfigError(
            f"{name} has {len(values)} values for {images} images. Pass one for all images, or one per image."
        )
    return values
