"""The stepper: asks the policy for each image's next time, and moves the latents there with a solver."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tpdm.core.device import without_autocast
from tpdm.core.errors import ConfigError
from tpdm.core.solvers import Solver
from tpdm.core.stepper_checks import check_limits, check_numbers, check_shapes, check_start, finite_rows
from tpdm.core.types import Decision, Features, Observation, Policy, Step, Trajectory

LANDING = 4  # the rule of latest_time applies to the last 1 / LANDING of the allowed steps


def latest_time(t: float, left: int, max_steps: int) -> float:
    """Compute the highest time at which a step may end. [ours]

    An image that is stopped at its cap would have to jump to 0 from any time, which ruins it. In the last quarter of
    the allowed steps, no step may therefore be shorter than equal steps to 0 would be.

    Args:
        t: Time at which the step begins, in (0, 1].
        left: Number of steps allowed after this one, >= 0.
        max_steps: Cap on the steps of an image.

    Returns:
        A time in [0, t) that is exact in fp32. It is 1 while the cap is far, and 0 for the last step.

    Example:
        >>> latest_time(0.5, left=20, max_steps=28), latest_time(0.5, left=1, max_steps=28)
        (1.0, 0.25)
    """
    if left * LANDING >= max_steps:
        return 1.0
    return float(struct.unpack("f", struct.pack("f", t * left / (left + 1)))[0])


class _Landing(NamedTuple):
    """One decision of one image on the host: the next time, and whether the cap overruled the policy."""

    action: float
    logp: float
    t_next: float
    capped: bool


class Stepper:
    """Advances B images, each with its own time, until all are at t = 0.

    Args:
        policy: Policy that decides the next times.
        solver: Solver that moves the latents, such as an entry of ``tpdm.core.solvers.SOLVERS``.
        images: Number of images B, >= 1.
        max_steps: Cap on the steps of an image, >= 1. The last allowed step ends at 0 and is recorded as not counting.
            Without ``record``, :func:`latest_time` also limits the last quarter of the steps, so that the last one is
            not a jump.
        stop_below: Proposed times below it become 0, in [0, 1). Fixed schedules ignore it.
        seeds: One integer per image, to sample decisions. None takes the mode.
        t_start: Time of all images at the start, in (0, 1]. None is 1.0, or the start of a fixed schedule.
        record: Whether to keep every step for :meth:`trajectories`.
        device: Device of the latents.

    Attributes:
        t_B: Current times, fp32.
        index_B: Number of steps made, int64.

    Raises:
        ConfigError: An option is out of range, or does not fit the policy.

    Example:
        >>> from tpdm import FixedSchedule
        >>> from tpdm.core.solvers import SOLVERS
        >>> stepper = Stepper(FixedSchedule([1.0, 0.5, 0.0]), SOLVERS["euler"], images=1)
        >>> x = torch.ones(1, 2)
        >>> while not stepper.done:
        ...     x = stepper.advance(x, torch.ones(1, 2), None)
        >>> x, stepper.steps
        (tensor([[0., 0.]]), [2])
    """

    def __init__(
        self,
        policy: Policy,
        solver: Solver,
        *,
        images: int,
        max_steps: int = 28,
        stop_below: float = 0.01,
        seeds: Sequence[int] | None = None,
        t_start: float | None = None,
        record: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        check_start(policy, images, seeds, t_start)
        check_limits(policy, max_steps, stop_below)
        self.policy, self.solver, self.max_steps = policy, solver, max_steps
        fixed = policy.fixed_steps is not None
        self.stop_below = 0.0 if fixed else stop_below
        # A fixed schedule keeps its own end. Training records the jump to 0, and learns from decisions that were not
        # overruled.
        self._lands = not (record or fixed)
        self.seeds = None if seeds is None else list(seeds)
        start_B = policy.initial_times(images)
        if start_B is None:
            start_B = torch.full((images,), 1.0 if t_start is None else t_start, dtype=torch.float32, device="cpu")
        self.t_B = start_B.to(device)
        self.index_B = torch.zeros(images, dtype=torch.int64, device=device)
        self._times = [[t] for t in start_B.tolist()]
        self._records: list[list[Step]] | None = [[] for _ in range(images)] if record else None
        self._solver_state: Any = None
        self._started = False
        self._before: tuple[Tensor, Tensor] | None = None

    @property
    def active_B(self) -> Tensor:
        """Whether each image is above t = 0, bool (B,)."""
        return self.t_B > 0

    @property
    def active_rows(self) -> list[int]:
        """Rows of the active images, ascending. The host knows them without waiting for the device."""
        return [b for b, times in enumerate(self._times) if times[-1] > 0]

    @property
    def done(self) -> bool:
        """Whether every image is at t = 0."""
        return not self.active_rows

    @property
    def steps(self) -> list[int]:
        """Number of steps made by each image."""
        return [len(times) - 1 for times in self._times]

    @property
    def times(self) -> list[list[float]]:
        """Times of each image from first to last: one more than its steps."""
        return [list(times) for times in self._times]

    def trajectories(self) -> list[Trajectory]:
        """Return the recorded steps, one trajectory per image.

        Raises:
            ConfigError: The stepper was created without ``record=True``.
        """
        if self._records is None:
            raise ConfigError(
                "record is False, so that no steps were kept. Create the stepper (or the call) with record=True."
            )
        return [Trajectory(tuple(steps)) for steps in self._records]

    @without_autocast()
    def advance(self, x: Tensor, prediction: Tensor, features: Features | None) -> Tensor:
        """Move every active image to its next time.

        Args:
            x: Latents, shape (B, ...).
            prediction: Denoiser output at ``t_B`` after guidance, same shape. Rows of finished images are ignored.
            features: Features of the active images only, in order. None if the policy reads none.

        Returns:
            The next latents, shape (B, ...). Rows of finished images are unchanged.

        Raises:
            TpdmError: Shapes do not fit, or all images are finished.
            NonFiniteError: A number is NaN or infinite. The message names image and step.
        """
        rows = self.active_rows
        check_shapes(x, prediction, features, len(self._times), len(rows))
        row_n = torch.tensor(rows, dtype=torch.int64, device=self.t_B.device)
        t_n, index_n = self.t_B[row_n], self.index_B[row_n]
        observation = self._observe(prediction, features, t_n, index_n, row_n)
        if self._records is not None:
            # A recorded decision is made from the stored observation, so that its ratio is 1 before the first update.
            # Other decisions use fp32, because fp16 would turn the rounding of a batch (1e-6) into steps of 1e-3.
            observation = self.policy.quantize_for_storage(observation)
        seeds = None if self.seeds is None else [self.seeds[b] for b in rows]
        decision = self.policy.propose(observation, seeds)
        landings = self._land(decision, prediction, features, rows)

        t_next_n = torch.tensor([landing.t_next for landing in landings], dtype=torch.float32, device=self.t_B.device)
        t_next_B = self.t_B.index_copy(0, row_n, t_next_n)
        if not self._started:
            self._solver_state, self._started = self.solver.init(x), True
        x_next, self._solver_state = self.solver.step(x, prediction, self.t_B, t_next_B, self._solver_state)

        self._record(rows, observation, landings)
        self.t_B, self.index_B = t_next_B, self.index_B.index_add(0, row_n, torch.ones_like(index_n))
        return x_next

    def _observe(
        self, prediction: Tensor, features: Features | None, t_n: Tensor, index_n: Tensor, row_n: Tensor
    ) -> Observation:
        if not self.policy.reads_change:
            return self.policy.observe(features, t_n, index_n, row_n)
        change_n = None
        if self._before is not None:
            # Every active image was evaluated at every step so far.
            prediction_B, t_B = self._before
            axes = tuple(range(1, prediction.ndim))
            difference_n = (prediction[row_n].float() - prediction_B[row_n].float()).square().mean(axes).sqrt()
            change_n = difference_n / (t_B[row_n] - t_n)
        self._before = (prediction, self.t_B)
        return self.policy.observe(features, t_n, index_n, row_n, change_n)

    def _land(
        self, decision: Decision, prediction: Tensor, features: Features | None, rows: list[int]
    ) -> list[_Landing]:
        """Apply the stop threshold and the cap to the active images, after checking that all numbers are finite."""
        finite_n, seen_n = finite_rows(prediction, features, rows)
        values = [decision.action_B, decision.logp_B, decision.t_next_B, finite_n, seen_n]
        # One copy to the host per step. The loop has to know which images are finished.
        table = torch.stack([v.to(prediction.device, torch.float32) for v in values], 1).tolist()
        landings = []
        for b, (action, logp, t_next, finite, seen) in zip(rows, table, strict=True):
            t = self._times[b][-1]
            check_numbers(b, t, self.steps[b] + 1, finite=finite, seen=seen, t_next=t_next, logp=logp)
            t_next = 0.0 if t_next < self.stop_below else t_next
            left = self.max_steps - self.steps[b] - 1
            latest = latest_time(t, left, self.max_steps) if self._lands or not left else 1.0
            latest = 0.0 if latest < self.stop_below else latest
            capped = t_next > latest
            landings.append(_Landing(action, logp, latest if capped else t_next, capped))
        return landings

    def _record(self, rows: list[int], observation: Observation, landings: list[_Landing]) -> None:
        for i, (b, (action, logp, t_next, capped)) in enumerate(zip(rows, landings, strict=True)):
            if self._records is not None:
                t = self._times[b][-1]
                self._records[b].append(Step(observation, i, action, logp, t, t_next, not capped))
            self._times[b].append(t_next)
