"""The scheduler that lets an unmodified pipeline run a policy: it hands out times as they are decided.

Every diffusers pipeline loops ``for i, t in enumerate(scheduler.timesteps)``, calls its denoiser, then
``scheduler.step``. So the timesteps are a lazy sequence, and ``step`` is a thin shell around the stepper.
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
    """The timesteps, or the sigmas, that a pipeline reads: each is known when its turn comes.

    Their number is the cap. Past and future entries do not exist: only the whole slice, which image-to-image pipelines
    call by the index where the strength begins, its first entry (1,), and the current index. Inpainting hands that
    on to ``scale_noise``, which knows the time of each image; so it is one number here, the latest.

    Args:
        scheduler: whose stepper knows the times.
        now: () -> the current entry, one number per image.
    """

    def __init__(self, scheduler: AdaptiveScheduler, now: Callable[[], Tensor]) -> None:
        self._scheduler, self._now = scheduler, now

    def __len__(self) -> int:
        return self._scheduler.stepper.max_steps

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(name)
        raise BackboneError(
            f"got timesteps.{name}, expected a loop over timesteps: times are decided one by one, so a pipeline or a "
            "callback that takes them for a tensor cannot be driven."
        )

    def __iter__(self) -> Iterator[Tensor]:
        if max(self._scheduler.stepper.steps) > 0:
            raise BackboneError(
                "got a pipeline that goes through its timesteps again, expected one denoising loop, for each time is "
                "decided once: call this pipeline without tpdm."
            )
        # Bounded by the cap, not by `done` alone: an interrupted pipeline goes on iterating without stepping.
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
            if index.stop == 1:  # the first entry, also where there is no other: whoever wants all names no end
                if (start, step, now) == (0, 1, 0):
                    return self._now().as_subclass(Tensor)[:1]
            elif (stop, step) == (len(self), 1) and (start == 0 or late):
                return self
            elif (stop, step, now) == (len(self), 1, 0):
                raise BackboneError(
                    f"got a start at step {start} of {stop} with times that start at 1, expected times that start at "
                    "the strength: leave out those above it, or pass strength=1.0."
                )
        elif index == now:
            return self._now().as_subclass(Tensor).amax()
        raise BackboneError(
            f"got timesteps[{index}] in step {now}, expected [{now}] or [:]: times are decided one by one, "
            "so a pipeline that looks ahead or starts in the middle cannot be driven."
        )


class AdaptiveScheduler(FlowMatchEulerDiscreteScheduler):
    """Hands out per-image times and asks the stepper. Make it with ``AdaptiveScheduler.driving``.

    It stands in for the schedulers of flow and of diffusion pipelines alike: the solver that knows the path is the
    stepper's, and diffusion pipelines need no more of a scheduler than ``init_noise_sigma`` and ``scale_model_input``,
    which the variance-preserving path leaves at 1.
    """

    init_noise_sigma = 1.0
    stands_for: Any
    _axis: TimeMapping
    _thread: int
    _make_stepper: Callable[[str | torch.device | None], Stepper]
    _read_features: Callable[[Stepper], Features | None]
    _stepper: Stepper | None = None
    _stepped: Tensor | None = None

    @property
    def stepper(self) -> Stepper:
        """Of the chain that runs, from ``set_timesteps`` on.

        Raises:
            BackboneError: the pipeline calls its denoiser without having asked for timesteps.
        """
        if self._stepper is None:
            raise BackboneError(
                "got a pipeline that calls its denoiser before scheduler.set_timesteps, expected one that asks its own "
                "scheduler for times: attach to the pipeline inside it that does."
            )
        return self._stepper

    @classmethod
    def driving(
        cls,
        make_stepper: Callable[[str | torch.device | None], Stepper],
        read_features: Callable[[Stepper], Features | None],
        axis: TimeMapping,
        stands_for: Any = None,
    ) -> AdaptiveScheduler:
        """Makes the scheduler of one pipeline call.

        Args:
            make_stepper: (device) -> a stepper at its start; called by ``set_timesteps``.
            read_features: (stepper) -> features of its active images, or None; called in every step.
            axis: what the pipeline makes of times.
            stands_for: the scheduler that the pipeline has otherwise.
        """
        scheduler: AdaptiveScheduler = cls(num_train_timesteps=axis.train_timesteps)
        scheduler._axis, scheduler.stands_for = axis, stands_for
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
        """Starts over. Only the device counts: pipelines always pass a schedule, but the policy decides.

        Raises:
            BackboneError: another thread calls the pipeline.
        """
        check_thread(self._thread)
        self._stepper, self._stepped = self._make_stepper(device), None
        self.num_inference_steps = self.stepper.max_steps
        self.timesteps = LazyTimesteps(self, self.time_now)
        self.sigmas = LazyTimesteps(self, lambda: self._axis.sigma(self.stepper.t_B))
        self._step_index = None
        self._begin_index = None

    def time_now(self) -> Tensor:
        """What the pipeline is handed for the time of every image, (B,) fp32; num_train_timesteps * t on the flow."""
        times: Tensor = self._axis.timesteps(self.stepper.t_B).as_subclass(PerSampleTimesteps)
        return times

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The latents as they are: on both paths the network reads them unscaled."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of images brought to a time; how image-to-image begins, and inpainting keeps what it keeps.

        An image that is finished gets no noise: on the variance-preserving path some is left at t = 0, which the stock
        pipeline never adds, for it knows its last step.

        Args:
            sample: latents of B images.
            timestep: as the pipeline was handed it, which stands for the time of each image; others are taken at their
                word.
            noise: as sample.
        """
        assert noise is not None
        t_B = self._times_of(timestep).to(sample.device)
        return torch.where(rows(t_B, sample) > 0, self._axis.noised(sample, noise, t_B), sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``scale_noise`` under the name that diffusion pipelines know."""
        return self.scale_noise(original_samples, timesteps, noise)

    def _times_of(self, timestep: float | Tensor) -> Tensor:
        """Those of the images now, if what is handed in is among theirs; else what a callback asks for."""
        now_B = self.time_now().as_subclass(Tensor)
        asked_N = torch.as_tensor(timestep, dtype=now_B.dtype, device=now_B.device).flatten()
        # Pipelines round them, to whole numbers or to bf16.
        near_NB = (asked_N[:, None] - now_B).abs() < 0.005 * self._axis.train_timesteps
        return self.stepper.t_B if near_NB.any(1).all() else self._axis.time(asked_N)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Advances every active image by one step of its own length.

        What the pipeline does to latents between steps is done to those of finished images too, once more in each
        step of the others; it starts again from where their last step left them, so that it counts once.

        Args:
            model_output: guided prediction (velocity, eps or v), B rows.
            timestep: ignored; the stepper knows the times it handed out.
            sample: latents, B rows.
            return_dict: whether to wrap the result as diffusers does.
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
    """The scheduler of a pipeline, also while another thread drives it."""
    scheduler = pipe.scheduler
    return scheduler.stands_for if isinstance(scheduler, AdaptiveScheduler) else scheduler
