"""Checks of the stepper before it changes anything: options, shapes, and finite numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError, NonFiniteError, TpdmError
from tpdm.core.types import Features, Policy


def check_limits(policy: Policy, max_steps: int, stop_below: float) -> None:
    """Check the limits of a call.

    A fixed schedule that is longer than ``max_steps`` is an error. Cutting it silently would make another baseline.

    Raises:
        ConfigError: A limit is out of range, or the fixed schedule is too long.
    """
    if not isinstance(max_steps, Integral) or max_steps < 1:
        raise ConfigError(f"max_steps is {max_steps}. It must be a whole number of at least 1. Try max_steps=28.")
    if not 0.0 <= stop_below < 1.0:
        raise ConfigError(f"stop_below is {stop_below:g}. It must be a time in [0, 1). Try stop_below=0.01.")
    fixed = policy.fixed_steps
    if fixed is not None and fixed > max_steps:
        raise ConfigError(
            f"max_steps is {max_steps}, but the fixed schedule has {fixed} steps. It is never cut. Pass "
            f"max_steps={fixed}."
        )


def check_start(policy: Policy, images: int, seeds: Sequence[int] | None, t_start: float | None) -> None:
    """Check that seeds, start time and fixed schedules fit the images.

    Raises:
        ConfigError: One of them does not fit.
    """
    if images < 1:
        raise ConfigError(f"images is {images}. It must be at least 1. Pass a prompt.")
    if seeds is not None and len(seeds) != images:
        raise ConfigError(f"seeds has {len(seeds)} numbers for {images} images. Pass one integer per image.")
    if t_start is not None and not 0.0 < t_start <= 1.0:
        raise ConfigError(f"t_start is {t_start:g}. It must be a time in (0, 1], and 1.0 is pure noise. Correct it.")
    start_B = policy.initial_times(images)
    if start_B is not None:
        starts = set(start_B.tolist())
        if t_start is not None and starts != {torch.tensor(t_start, dtype=torch.float32, device="cpu").item()}:
            raise ConfigError(
                f"t_start is {t_start:g}, but the fixed schedules start at {sorted(starts)}. Both must be the same. "
                "Leave t_start out."
            )


def check_shapes(x: Tensor, prediction: Tensor, features: Features | None, images: int, active: int) -> None:
    """Check the shapes of a step, and that images are left.

    Args:
        x: Latents of all images.
        prediction: Denoiser output for all images.
        features: Features of the active images. None if the policy reads none.
        images: Number of images of the call.
        active: Number of images that are not finished.

    Raises:
        TpdmError: A shape does not fit, or all images are finished.
    """
    if active == 0:
        raise TpdmError(f"All {images} images have reached t = 0, so that no step is left. Stop when done is true.")
    if x.shape != prediction.shape or x.shape[0] != images:
        raise TpdmError(
            f"The latents have shape {tuple(x.shape)} and the prediction {tuple(prediction.shape)}. Both must have the "
            f"same shape with {images} rows. Create the stepper with the number of images of the call."
        )
    if features is not None and features.first_BDHW.shape[0] != active:
        raise TpdmError(
            f"The features have {features.first_BDHW.shape[0]} rows. They must have {active}, one per active image. "
            "Leave out finished images."
        )


def finite_rows(prediction: Tensor, features: Features | None, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Return which active images have a finite prediction, and which have finite features.

    Args:
        prediction: Denoiser output for all B images.
        features: Features of the active images, or None.
        rows: Rows of the active images.

    Returns:
        Two bool tensors with one entry per active image.
    """
    finite_n = prediction[torch.tensor(rows, dtype=torch.int64, device=prediction.device)].flatten(1).isfinite().all(1)
    if features is None:
        return finite_n, torch.ones_like(finite_n)
    maps = (features.first_BDHW, features.last_BDHW, features.temb_BE)
    return finite_n, torch.stack([m.flatten(1).isfinite().all(1) for m in maps]).all(0)


def check_numbers(image: int, t: float, step: int, *, finite: bool, seen: bool, t_next: float, logp: float) -> None:
    """Check the numbers of one image at one step.

    Args:
        image: Row of the image.
        t: Current time.
        step: Number of the step, from 1.
        finite: Whether the prediction is finite.
        seen: Whether the features are finite.
        t_next: Next time that the policy proposes.
        logp: Log-probability of the decision.

    Raises:
        NonFiniteError: Prediction or features are not finite, or the decision is outside [0, t].
    """
    where = f"image {image} at t = {t:.4g} (step {step})"
    if not finite or not seen:
        raise NonFiniteError(
            f"NaN or infinity is in the denoiser's {'features' if finite else 'prediction'} for {where}. All numbers "
            "must be finite. Use bf16 or fp32 instead of fp16.",
            image,
        )
    if not 0.0 <= t_next <= t or logp != logp:
        raise NonFiniteError(
            f"The policy proposed the next time {t_next:.4g} (log-probability {logp:.4g}) for {where}. It must be in "
            f"[0, {t:.4g}]. Load other weights.",
            image,
        )
