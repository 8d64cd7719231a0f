"""``TimeMapping``: the path and solver of a pipeline, and conversions between times and its timesteps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tpdm.core.errors import BackboneError, ConfigError
from tpdm.core.paths import PREDICTIONS, VPPath, flow_interpolate, vp_path
from tpdm.core.solvers import SOLVERS, VP_SOLVERS, Solver
from tpdm.pipelines.registry import DenoiserSpec

# Scheduler options that change the path.
OPTIONS = {"flow": ("stochastic_sampling", "invert_sigmas"), "vp": ("clip_sample", "thresholding")}

# What the network may predict on each path, the usual one first.
PREDICTED = {"flow": ("flow_prediction",), "vp": PREDICTIONS}


@dataclass(frozen=True)
class TimeMapping:
    """Conversions of times t in (0, 1] for one pipeline.

    Attributes:
        solver: Solver that integrates the network's output along the path.
        timesteps: t (B,) -> timesteps of the pipeline, fp32 (B,): T t on the flow path, T t - 1 on the
            variance-preserving path (``VPPath.timestep``).
        time: Timesteps of the pipeline -> t, fp32 (B,).
        sigma: t (B,) -> sigma of diffusers' schedulers of this path, fp32 (B,).
        noised: (image latents, noise, t (B,)) -> latents at t, for calls that start from an image.
        train_timesteps: Number of training timesteps T.
    """

    solver: Solver
    timesteps: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    noised: Callable[[Tensor, Tensor, Tensor], Tensor]
    train_timesteps: int


def make_time_mapping(scheduler: Any, entry: DenoiserSpec, solver: str) -> TimeMapping:
    """Returns the time mapping of a pipeline with this scheduler.

    Args:
        scheduler: Scheduler of the pipeline. Only its configuration is read, so any one that fits the model works.
        entry: Row of its denoiser.
        solver: Name in ``tpdm.core.solvers.SOLVERS``.

    Raises:
        ConfigError: The solver is unknown, or does not fit this path.
        BackboneError: The scheduler's options do not describe a deterministic path.
    """
    solvers = tuple(SOLVERS) if entry.path == "flow" else tuple(VP_SOLVERS)
    if solver not in solvers:
        raise ConfigError(
            f"solver is {solver!r}. It must be one of {', '.join(solvers)} for this model. Choose one of them."
        )
    for option in OPTIONS[entry.path]:
        if scheduler.config.get(option):
            raise BackboneError(
                f"{option}=True is set in the scheduler. The path from t = 1 to 0 must be deterministic. Set {option} "
                "to False."
            )
    prediction = _prediction(scheduler, entry)
    steps: int = scheduler.config.num_train_timesteps
    if entry.path == "flow":
        return TimeMapping(
            SOLVERS[solver], lambda t_B: t_B * steps, lambda k_B: k_B / steps, _same, _flow_noised, steps
        )
    path = replace(path_of_scheduler(scheduler), prediction=prediction)
    return TimeMapping(
        VP_SOLVERS[solver](path), path.timestep, path.time_of_timestep, path.sigma, path.interpolate, steps
    )


def path_of_scheduler(scheduler: Any) -> VPPath:
    """Returns the variance-preserving path of a scheduler's betas, read by DDIM.

    Raises:
        ConfigError: The noise reaches infinity (rescaled betas). There eps does not depend on the image.
    """
    with torch.device("cpu"):  # DDIM creates its betas on torch's default device
        ddim = DDIMScheduler.from_config(dict(scheduler.config))
    return vp_path(ddim.alphas_cumprod, final=float(ddim.final_alpha_cumprod))


def flow_times(scheduler: Any) -> list[float]:
    """Returns the current schedule of a flow scheduler, from its first time down to 0.0.

    Before diffusers 0.39, Z-Image ends with a step from 0 to 0. It changes nothing and is removed.

    Example:
        >>> from types import SimpleNamespace
        >>> flow_times(SimpleNamespace(sigmas=torch.tensor([1.0, 0.5, 0.0, 0.0])))
        [1.0, 0.5, 0.0]
    """
    times: list[float] = scheduler.sigmas.tolist()
    return times[: times.index(0.0) + 1] if 0.0 in times else times


def vp_times(scheduler: Any, steps: int) -> list[float]:
    """Returns a diffusion scheduler's own schedule as times: (timestep + 1) / T of each, then 0.0."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps)
    timesteps = torch.as_tensor(fresh.timesteps, dtype=torch.float64, device="cpu")
    timesteps = timesteps.unique().flip(0)  # second-order schedulers repeat timesteps
    return [*path_of_scheduler(scheduler).time_of_timestep(timesteps).tolist(), 0.0]


def _same(t_B: Tensor) -> Tensor:
    return t_B


def _flow_noised(x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    # Times in the latents' dtype, as in diffusers.
    return flow_interpolate(x0, eps, t_B.to(x0.dtype))


def _prediction(scheduler: Any, entry: DenoiserSpec) -> str:
    expected = PREDICTED[entry.path]
    prediction: str = scheduler.config.get("prediction_type", expected[0])
    if prediction not in expected or (entry.path == "vp" and "beta_start" not in scheduler.config):
        raise BackboneError(
            f"{type(scheduler).__name__} has prediction_type={prediction!r}. This denoiser class needs a scheduler of "
            f"{' or '.join(expected)}. Use the scheduler of the pipeline's own model."
        )
    return prediction


class PerSampleTimesteps(Tensor):
    """A tensor (B,) with one time per image, which ``expand`` repeats for a multiple of B rows.

    Pipelines write ``t.expand(rows)``. With one time per image and one-call guidance, rows is 2B.
    """

    def expand(self, *sizes: Any) -> Tensor:  # type: ignore[override]
        """Repeats the B times k times for ``expand(k * B)``. Any other expand is the usual one.

        Example:
            >>> torch.tensor([1.0, 0.5]).as_subclass(PerSampleTimesteps).expand(4)
            tensor([1.0000, 0.5000, 1.0000, 0.5000])
        """
        plain = self.as_subclass(Tensor)
        if len(sizes) == 1 and isinstance(sizes[0], int) and plain.ndim == 1 and sizes[0] % len(plain) == 0:
            return plain.repeat(sizes[0] // len(plain))
        return plain.expand(*sizes)
