"""The scheduler that lets an unmodified pipeline run a policy: it hands out times as they are decided.

Every diffusers pipeline loops ``for i, t in enumerate(scheduler.timesteps)``, calls its denoiser, then
``scheduler.step``. So the timesteps are a lazy sequence, and ``step`` is a thin shell around the stepper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from tpdm.stepper import Stepper
from tpdm.types import BackboneError, Features


class ImageTimes(Tensor):
    """One time per image, (B,). Behaves as a tensor, except that expanding to a multiple of B rows tiles it.

    Pipelines write ``t.expand(rows)``: with one time per image and guidance in one call, rows is 2B.
    """

    def expand(self, *sizes: Any) -> Tensor:  # type: ignore[override]
        """``expand(k * B)`` repeats the B times k times over; anything else is the usual expand."""
        plain = self.as_subclass(Tensor)
        if len(sizes) == 1 and isinstance(sizes[0], int) and plain.ndim == 1 and sizes[0] % len(plain) == 0:
            return plain.repeat(sizes[0] // len(plain))
        return plain.expand(*sizes)


class LazyTimesteps:
    """The timesteps that a pipeline iterates over: each is read from the stepper when its turn comes.

    Its length is the cap. Past and future entries do not exist: only the current index and the whole slice.
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
        now = max(self._scheduler.stepper.steps)
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        if index == now and not self._scheduler.stepper.done:
            return self._scheduler.time_now()
        raise BackboneError(
            f"got timesteps[{index}] in step {now}, expected [{now}] or [:]: times are decided one by one, "
            "so a pipeline that looks ahead or starts in the middle cannot be driven."
        )


class AdaptiveScheduler(FlowMatchEulerDiscreteScheduler):
    """Hands out per-image times and asks the stepper. Make it with ``AdaptiveScheduler.driving``."""

    stepper: Stepper
    _make_stepper: Callable[[str | torch.device | None], Stepper]
    _read_features: Callable[[Stepper], Features | None]

    @classmethod
    def driving(
        cls,
        make_stepper: Callable[[str | torch.device | None], Stepper],
        read_features: Callable[[Stepper], Features | None],
        num_train_timesteps: int = 1000,
    ) -> AdaptiveScheduler:
        """Makes the scheduler of one pipeline call.

        Args:
            make_stepper: (device) -> a stepper at its start; called by ``set_timesteps``.
            read_features: (stepper) -> features of its active images, or None; called in every step.
            num_train_timesteps: pipelines are handed this times t.
        """
        scheduler: AdaptiveScheduler = cls(num_train_timesteps=num_train_timesteps)
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
        """Starts over. Only the device counts: pipelines always pass a schedule, but the policy decides."""
        self.stepper = self._make_stepper(device)
        self.num_inference_steps = self.stepper.max_steps
        self.timesteps = LazyTimesteps(self)
        self._step_index = None
        self._begin_index = None

    def time_now(self) -> Tensor:
        """num_train_timesteps * t of every image, (B,) fp32."""
        times: Tensor = (self.stepper.t_B * self.config.num_train_timesteps).as_subclass(ImageTimes)
        return times

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Advances every active image by one step of its own length.

        Args:
            model_output: guided velocity, B rows.
            timestep: ignored; the stepper knows the times it handed out.
            sample: latents, B rows.
            return_dict: whether to wrap the result as diffusers does.
        """
        features = self._read_features(self.stepper)
        sample = self.stepper.advance(sample, model_output, features)
        if not return_dict:
            return (sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample)
