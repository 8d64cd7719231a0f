"""The scheduler with which an unmodified pipeline follows a policy.

Every diffusers pipeline loops ``for i, t in enumerate(scheduler.timesteps)``, calls its denoiser, then
``scheduler.step``. So the timesteps are a lazy sequence, and ``step`` calls the stepper.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from tpdm.core.errors import BackboneError
from tpdm.core.paths import rows
from tpdm.core.stepper import Stepper
from tpdm.core.types import Features
from tpdm.pipelines.active_rows import check_thread
from tpdm.pipelines.time_mapping import PerSampleTimesteps, TimeMapping


class LazyTimesteps:
    """The timesteps, or the sigmas, of a pipeline. An entry exists only while its step runs.

    The length is the maximum number of steps. A pipeline may read the whole slice, which image-to-image pipelines start
    at the index of the strength, the first entry (1,), and the current index. Inpainting passes the current entry to
    ``scale_noise``, which uses the time of each image. So the entry is one number, the latest time.

    Args:
        scheduler: Scheduler whose stepper has the times.
        now: () -> current entry, one number per image.
    """

    def __init__(self, scheduler: AdaptiveScheduler, now: Callable[[], Tensor]) -> None:
        self._scheduler, self._now = scheduler, now

    def __len__(self) -> int:
        return self._scheduler.stepper.max_steps

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(name)
        raise BackboneError(
            f"timesteps.{name} does not exist. Times are decided one by one, so a pipeline or a callback that reads "
            "timesteps as a tensor cannot be driven. Loop over timesteps instead."
        )

    def __iter__(self) -> Iterator[Tensor]:
        if max(self._scheduler.stepper.steps) > 0:
            raise BackboneError(
                "timesteps are iterated a second time. A driven pipeline must have one denoising loop, because each "
                "time is decided once. Call this pipeline without tpdm."
            )
        # Bounded by the cap as well as by `done`: an interrupted pipeline continues to iterate without stepping.
        for _ in range(len(self)):
            if self._scheduler.stepper.done:
                return
            yield self._now()

    def __getitem__(self, index: int | slice) -> Tensor | LazyTimesteps:
        stepper = self._scheduler.stepper
        now = max(stepper.steps)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            late = now == 0 and all(times[0] < 1.0 for times in stepper.times)
            if index.stop == 1:  # the first entry, even if it is the only one: the whole slice has no end
                if (start, step, now) == (0, 1, 0):
                    return self._now().as_subclass(Tensor)[:1]
            elif (stop, step) == (len(self), 1) and (start == 0 or late):
                return self
            elif (stop, step, now) == (len(self), 1, 0):
                raise BackboneError(
                    f"The pipeline starts at step {start} of {stop}, but the fixed times start at 1. They must start "
                    "at the strength. Leave out the times above it, or pass strength=1.0."
                )
        elif index == now:
            return self._now().as_subclass(Tensor).amax()
        raise BackboneError(
            f"timesteps[{index}] does not exist in step {now}. Times are decided one by one, so only [{now}] and [:] "
            "can be read. A pipeline that looks ahead or starts in the middle cannot be driven."
        )


class AdaptiveScheduler(FlowMatchEulerDiscreteScheduler):
    """Scheduler with one time per image, which its stepper decides. Create it with ``AdaptiveScheduler.driving``.

    It replaces the schedulers of both flow and diffusion pipelines. The solver of the stepper integrates the path.
    Diffusion pipelines also need ``init_noise_sigma`` and ``scale_model_input``. The variance-preserving path does not
    scale.
    """

    init_noise_sigma = 1.0
    replaces: Any
    _mapping: TimeMapping
    _thread: int
    _make_stepper: Callable[[str | torch.device | None], Stepper]
    _read_features: Callable[[Stepper], Features | None]
    _stepper: Stepper | None = None
    _stepped: Tensor | None = None

    @property
    def stepper(self) -> Stepper:
        """Stepper of the running call, after ``set_timesteps``.

        Raises:
            BackboneError: The pipeline calls its denoiser before ``set_timesteps``.
        """
        if self._stepper is None:
            raise BackboneError(
                "The pipeline calls its denoiser before scheduler.set_timesteps. A driven pipeline must ask its own "
                "scheduler for times. Attach to the inner pipeline that does."
            )
        return self._stepper

    @classmethod
    def driving(
        cls,
        make_stepper: Callable[[str | torch.device | None], Stepper],
        read_features: Callable[[Stepper], Features | None],
        mapping: TimeMapping,
        replaces: Any = None,
    ) -> AdaptiveScheduler:
        """Creates the scheduler of one pipeline call.

        Args:
            make_stepper: (device) -> stepper at its start. ``set_timesteps`` calls it.
            read_features: (stepper) -> features of its active images, or None. Every step calls it.
            mapping: Conversions between times and the pipeline's timesteps.
            replaces: The pipeline's own scheduler.
        """
        scheduler: AdaptiveScheduler = cls(num_train_timesteps=mapping.train_timesteps)
        scheduler._mapping, scheduler.replaces = mapping, replaces
        scheduler._thread = threading.get_ident()
        scheduler._make_stepper, scheduler._read_features = make_stepper, read_features
        return scheduler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Starts the stepper. Only the device is used: pipelines always pass a schedule, but the policy decides.

        Raises:
            BackboneError: Another thread calls the pipeline.
        """
        check_thread(self._thread)
        self._stepper, self._stepped = self._make_stepper(device), None
        self.num_inference_steps = self.stepper.max_steps
        self.timesteps = LazyTimesteps(self, self.time_now)
        self.sigmas = LazyTimesteps(self, lambda: self._mapping.sigma(self.stepper.t_B))
        self._step_index = None
        self._begin_index = None

    def time_now(self) -> Tensor:
        """Returns the pipeline's timestep of every image, (B,) fp32. It is num_train_timesteps * t on the flow path."""
        times: Tensor = self._mapping.timesteps(self.stepper.t_B).as_subclass(PerSampleTimesteps)
        return times

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Returns the latents unchanged: networks of both paths read them unscaled."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns latents of images with the noise of a time, for image-to-image and inpainting.

        A finished image gets no noise. The variance-preserving path has some at t = 0, which the stock pipeline does
        not add after its last step.

        Args:
            sample: Latents of B images.
            timestep: Current timestep of the pipeline, which is replaced by the time of each image. Any other timestep
                is used as it is.
            noise: Noise of the same shape as sample.
        """
        assert noise is not None
        t_B = self._times_of(timestep).to(sample.device)
        return torch.where(rows(t_B, sample) > 0, self._mapping.noised(sample, noise, t_B), sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Calls ``scale_noise``. Diffusion pipelines use this name."""
        return self.scale_noise(original_samples, timesteps, noise)

    def _times_of(self, timestep: float | Tensor) -> Tensor:
        """The images' current times if the timesteps are the current ones. Otherwise the times of the timesteps."""
        now_B = self.time_now().as_subclass(Tensor)
        given_N = torch.as_tensor(timestep, dtype=now_B.dtype, device=now_B.device).flatten()
        # Pipelines round timesteps to whole numbers or to bf16.
        near_NB = (given_N[:, None] - now_B).abs() < 0.005 * self._mapping.train_timesteps
        return self.stepper.t_B if near_NB.any(1).all() else self._mapping.time(given_N)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Advances every active image by one step of its own length.

        A pipeline may change latents between steps. It changes those of finished images again in each later step. Their
        rows are reset to the result of their last step, so that the change counts once.

        Args:
            model_output: Guided prediction (velocity, eps or v), B rows.
            timestep: Ignored. The stepper has the times.
            sample: Latents, B rows.
            return_dict: Whether to wrap the result as diffusers does.
        """
        check_thread(self._thread)
        stepper, features = self.stepper, self._read_features(self.stepper)
        if self._stepped is not None and len(stepper.active_rows) < len(stepper.steps):
            active_B = rows(stepper.active_B.to(sample.device), sample)
            sample = torch.where(active_B, sample, self._stepped.to(sample.dtype))
        sample = self._stepped = stepper.advance(sample, model_output, features)
        if not return_dict:
            return (sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample)


def own_scheduler(pipe: Any) -> Any:
    """Returns the pipeline's own scheduler, even while another thread drives the pipeline."""
    scheduler = pipe.scheduler
    return scheduler.replaces if isinstance(scheduler, AdaptiveScheduler) else scheduler
