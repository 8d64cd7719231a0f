"""What the stepper checks before it changes anything: options, shapes, and that no number is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError, NonFiniteError, TpdmError
from tpdm.core.types import Features, Policy


def check_limits(policy: Policy, max_steps: int, stop_below: float) -> None:
    """Refuses limits out of range, and a fixed list longer than the cap.

    A fixed list is run whole or not at all: a baseline that is cut silently is another baseline.
    """
    if not isinstance(max_steps, Integral) or max_steps < 1:
        raise ConfigError(f"got max_steps {max_steps}, expected a whole number of at least 1: 28 is usual.")
    if not 0.0 <= stop_below < 1.0:
        raise ConfigError(f"got stop_below {stop_below:g}, expected a time in [0, 1): 0.01 is usual.")
    fixed = policy.fixed_steps
    if fixed is not None and fixed > max_steps:
        raise ConfigError(
            f"got a fixed schedule of {fixed} steps, expected at most max_steps = {max_steps}: pass max_steps={fixed}."
        )


def check_start(policy: Policy, images: int, seeds: Sequence[int] | None, t_start: float | None) -> None:
    """Refuses seeds and start times that do not fit the images or the fixed lists."""
    if images < 1:
        raise ConfigError(f"got {images} images, expected at least 1: pass a prompt.")
    if seeds is not None and len(seeds) != images:
        raise ConfigError(f"got {len(seeds)} seeds for {images} images, expected one integer per image.")
    if t_start is not None and not 0.0 < t_start <= 1.0:
        raise ConfigError(f"got t_start {t_start:g}, expected a time in (0, 1]: 1.0 is pure noise.")
    start_B = policy.initial_times(images)
    if start_B is not None:
        starts = set(start_B.tolist())
        if t_start is not None and starts != {torch.tensor(t_start, dtype=torch.float32, device="cpu").item()}:
            raise ConfigError(
                f"got t_start {t_start:g} with fixed times that start at {sorted(starts)}, expected the "
                "same: leave t_start out."
            )


def check_shapes(x: Tensor, prediction: Tensor, features: Features | None, images: int, active: int) -> None:
    """Refuses a step after the end, and rows that are not the images or not the active ones."""
    if active == 0:
        raise TpdmError(f"got another step after all {images} images reached t = 0: stop when done is true.")
    if x.shape != prediction.shape or x.shape[0] != images:
        raise TpdmError(
            f"got latents {tuple(x.shape)} and prediction {tuple(prediction.shape)}, expected two equal "
            f"shapes of {images} rows: give the stepper the number of images of the call."
        )
    if features is not None and features.first_BDHW.shape[0] != active:
        raise TpdmError(
            f"got features of {features.first_BDHW.shape[0]} rows, expected the {active} active images "
            "only: leave out finished rows."
        )


def finite_rows(prediction: Tensor, features: Features | None, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Whether prediction (of B rows, at ``rows``) and features (of those rows) are finite: two bool (n,)."""
    finite_n = prediction[torch.tensor(rows, dtype=torch.int64, device=prediction.device)].flatten(1).isfinite().all(1)
    if features is None:
        return finite_n, torch.ones_like(finite_n)
    maps = (features.first_BDHW, features.last_BDHW, features.temb_BE)
    return finite_n, torch.stack([m.flatten(1).isfinite().all(1) for m in maps]).all(0)


def check_numbers(image: int, t: float, step: int, *, finite: bool, seen: bool, t_next: float, logp: float) -> None:
    """Refuses NaN in prediction (not ``finite``) or features (not ``seen``), and decisions outside [0, t]."""
    if not finite or not seen:
        raise NonFiniteError(
            f"got NaN or infinity in the denoiser's {'features' if finite else 'prediction'} for image "
            f"{image} at t = {t:.4g} (step {step}), expected finite ones: use bf16 or fp32 instead of fp16.",
            image,
        )
    if not 0.0 <= t_next <= t or logp != logp:
        raise NonFiniteError(
            f"got next time {t_next:.4g} (log-probability {logp:.4g}) from the policy for image "
            f"{image} at t = {t:.4g} (step {step}), expected one in [0, {t:.4g}]: load other weights.",
            image,
        )
