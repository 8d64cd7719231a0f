"""How the policy's times meet a pipeline: which path it runs on, its solver, and what it is handed for a time."""

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

# Scheduler options that make the path another one, and what the network may predict on it, the usual first.
OPTIONS = {"flow": ("stochastic_sampling", "invert_sigmas"), "vp": ("clip_sample", "thresholding")}

PREDICTED = {"flow": ("flow_prediction",), "vp": PREDICTIONS}


@dataclass(frozen=True)
class TimeMapping:
    """What one pipeline makes of times t in (0, 1].

    Attributes:
        solver: integrates the network's output along the path.
        timesteps: t (B,) -> what the pipeline is handed, fp32 (B,): T t on the flow path, T t - 1 on the
            variance-preserving one (``VPPath.timestep``).
        time: what the pipeline is handed -> t, fp32 (B,).
        sigma: t (B,) -> what diffusers' schedulers of this path call sigma, fp32 (B,).
        noised: (image latents, noise, t (B,)) -> the latents at t, where a chain starts from an image.
        train_timesteps: T.
    """

    solver: Solver
    timesteps: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    noised: Callable[[Tensor, Tensor, Tensor], Tensor]
    train_timesteps: int


def make_time_mapping(scheduler: Any, entry: DenoiserSpec, solver: str) -> TimeMapping:
    """The axis of a pipeline with this scheduler.

    Args:
        scheduler: of the pipeline; only its config is read, so any scheduler that fits the model will do.
        entry: of its denoiser.
        solver: a name in ``tpdm.core.solvers.SOLVERS``.

    Raises:
        ConfigError: the solver is unknown, or not one of this path.
        BackboneError: the scheduler's options do not describe a deterministic path.
    """
    solvers = tuple(SOLVERS) if entry.path == "flow" else tuple(VP_SOLVERS)
    if solver not in solvers:
        raise ConfigError(
            f"got solver {solver!r}, expected one of {', '.join(solvers)} for this model: choose one of them."
        )
    for option in OPTIONS[entry.path]:
        if scheduler.config.get(option):
            raise BackboneError(
                f"got a scheduler with {option}=True, expected a deterministic path from t = 1 to 0: "
                "set the option to False."
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
    """The variance-preserving path of a scheduler's betas; DDIM reads them as every other scheduler does.

    Raises:
        ConfigError: the noise reaches infinity (rescaled betas), where eps says nothing of the image.
    """
    with torch.device("cpu"):  # it makes its betas on torch's default device
        ddim = DDIMScheduler.from_config(dict(scheduler.config))
    return vp_path(ddim.alphas_cumprod, final=float(ddim.final_alpha_cumprod))


def flow_times(scheduler: Any) -> list[float]:
    """The schedule that a flow scheduler was last set to, from its first time down to 0.0.

    Z-Image ends with a step from 0 to 0 in diffusers before 0.39: it changes nothing, and is left out.
    """
    times: list[float] = scheduler.sigmas.tolist()
    return times[: times.index(0.0) + 1] if 0.0 in times else times


def vp_times(scheduler: Any, steps: int) -> list[float]:
    """A diffusion scheduler's own schedule as times: (timestep + 1) / T of each, then 0.0."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps)
    timesteps = torch.as_tensor(fresh.timesteps, dtype=torch.float64, device="cpu")
    timesteps = timesteps.unique().flip(0)  # second-order ones repeat them
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
            f"got {type(scheduler).__name__} (prediction_type={prediction!r}), expected a scheduler of "
            f"{' or '.join(expected)} for this denoiser class: give the pipeline the scheduler of its model."
        )
    return prediction


class PerSampleTimesteps(Tensor):
    """One time per image, (B,). Behaves as a tensor, except that expanding to a multiple of B rows tiles it.

    Pipelines write ``t.expand(rows)``: with one time per image and guidance in one call, rows is 2B.
    """

    def expand(self, *sizes: Any) -> Tensor:  # type: ignore[override]
        """``expand(k * B)`` repeats the B times k times over; anything else is the usual expand."""
        plain = self.as_subclass(Tensor)
        if len(sizes) == 1 and isinstance(sizes[0], int) and plain.ndim == 1 and sizes[0] % len(plain) == 0:
            return plain.repeat(sizes[0] // len(plain))
        return plain.expand(*sizes)
