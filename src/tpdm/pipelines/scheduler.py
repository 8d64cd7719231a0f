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

from tpdm.pipelines.axis import TimeAxis
from tpdm.pipelines.image_times import ImageTimes
from tpdm.pipelines.rows import check_thread
from tpdm.stepper import Stepper
from tpdm.types import BackboneError, Features


class LazyTimesteps:
    """The timesteps that a pipeline iterates over: each is read from the stepper when its turn comes.

    Its length is the cap. Past and future entries do not exist: only the whole slice, which image-to-image pipelines
    call by the index where the strength begins, its first entry (1,), and the current index. Inpainting hands that
    on to ``scale_noise``, which knows the time of each image; so it is one number here, the latest.
    """

    def __init__(self, scheduler: AdaptiveScheduler) -> None:
        self._scheduler = scheduler

    def __len__(self) -> int:
        return self._scheduler.stepper.max_steps

    def __iter__(self) -> Iterator[Tensor]:
        # Bounded by the cap, not by `done` alone: an interrupted pipeline goes on iterating without stepping.
        for _ in range(len(self)):
            if self._scheduler.stepper.done:
                return
            yield self._scheduler.time_now()

    def __getitem__(self, index: int | slice) -> Tensor | LazyTimesteps:
        stepper = self._scheduler.stepper
        now = max(stepper.steps)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            late = now == 0 and all(times[0] < 1.0 for times in stepper.times)
            if index.stop == 1:  # the first entry, also where there is no other: whoever wants all names no end
                if (start, step, now) == (0, 1, 0):
                    return self._scheduler.time_now().as_subclass(Tensor)[:1]
            elif (stop, step) == (len(self), 1) and (start == 0 or late):
                return self
        elif index == now:
            return self._scheduler.time_now().as_subclass(Tensor).amax()
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
    stepper: Stepper
    stands_for: Any
    _axis: TimeAxis
    _thread: int
    _make_stepper: Callable[[str | torch.device | None], Stepper]
    _read_features: Callable[[Stepper], Features | None]

    @classmethod
    def driving(
        cls,
        make_stepper: Callable[[str | torch.device | None], Stepper],
        read_features: Callable[[Stepper], Features | None],
        axis: TimeAxis,
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
        self.stepper = self._make_stepper(device)
        self.num_inference_steps = self.stepper.max_steps
        self.timesteps = LazyTimesteps(self)
        self._step_index = None
        self._begin_index = None

    def time_now(self) -> Tensor:
        """What the pipeline is handed for the time of every image, (B,) fp32; num_train_timesteps * t on the flow."""
        times: Tensor = self._axis.timesteps(self.stepper.t_B).as_subclass(ImageTimes)
        return times

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The latents as they are: on both paths the network reads them unscaled."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of images brought to the times of the images; how image-to-image begins on the flow path.

        Args:
            sample: latents of B images.
            timestep: ignored; the stepper knows the times.
            noise: as sample.
        """
        assert noise is not None
        return self._axis.noised(sample, noise, self.stepper.t_B.to(sample.device))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``scale_noise`` under the name that diffusion pipelines know."""
        return self.scale_noise(original_samples, timesteps, noise)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Advances every active image by one step of its own length.

        Args:
            model_output: guided prediction (velocity, eps or v), B rows.
            timestep: ignored; the stepper knows the times it handed out.
            sample: latents, B rows.
            return_dict: whether to wrap the result as diffusers does.
        """
        check_thread(self._thread)
        features = self._read_features(self.stepper)
        sample = self.stepper.advance(sample, model_output, features)
        if not return_dict:
            return (sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample)
