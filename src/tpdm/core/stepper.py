"""How a chain that nears its cap comes to an end: in equal steps, not in one jump."""

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

LANDING = 4  # a chain lands in the last 1 / LANDING of its steps


def latest_time(t: float, left: int, max_steps: int) -> float:
    """The highest time at which a step may end. [ours]

    A chain that is stopped at its cap has to jump to 0 from wherever it is, which ruins the image. In the last quarter
    of the allowed steps no step may be shorter than equal steps to 0 would be.

    Args:
        t: where the step begins, in (0, 1].
        left: steps that are allowed after this one, at least 0.
        max_steps: the cap.

    Returns:
        A time in [0, t) that fp32 holds; 1 where the cap is still far, and 0 for the last step.
    """
    if left * LANDING >= max_steps:
        return 1.0
    return float(struct.unpack("f", struct.pack("f", t * left / (left + 1)))[0])


class _Landing(NamedTuple):
    """Host copy of one decision of one image: where it lands, and whether the cap overruled the policy."""

    action: float
    logp: float
    t_next: float
    capped: bool


class Stepper:
    """Advances B images, each on its own clock, until all are at t = 0.

    Args:
        policy: decides the next times.
        solver: integrates; an entry of ``tpdm.core.solvers.SOLVERS``.
        images: B, at least 1.
        max_steps: no image takes more; the last allowed step lands on 0 (recorded as not counting). Where nothing is
            recorded, the last quarter of them go at least as far as equal steps to 0 would, so that the last one is no
            jump (decision 54).
        stop_below: a proposed time below it becomes 0, in [0, 1); ignored for a fixed schedule.
        seeds: one integer per image, for sampled decisions; None takes the mode.
        t_start: time of all images at the start, in (0, 1]; None is 1.0, or the beginning of a fixed list.
        record: keep every step for ``trajectories``.
        device: where the clocks live (the device of the latents).

    Attributes:
        t_B: current times, fp32. index_B: steps made, int64. active_B: not yet at 0, bool.
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
        # A fixed list ends as it says. Training feels the jump, and learns from decisions that nobody overruled.
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
        """Images not yet at t = 0, bool (B,)."""
        return self.t_B > 0

    @property
    def active_rows(self) -> list[int]:
        """Positions of the active images, ascending; known to the host without waiting for the device."""
        return [b for b, times in enumerate(self._times) if times[-1] > 0]

    @property
    def done(self) -> bool:
        """Whether every image is at t = 0."""
        return not self.active_rows

    @property
    def steps(self) -> list[int]:
        """Steps made by each image."""
        return [len(times) - 1 for times in self._times]

    @property
    def times(self) -> list[list[float]]:
        """Times each image has been at, first to last: one more than its steps."""
        return [list(times) for times in self._times]

    def trajectories(self) -> list[Trajectory]:
        """The record, one per image.

        Raises:
            ConfigError: the stepper was made without ``record=True``.
        """
        if self._records is None:
            raise ConfigError("got no record of this run: make the stepper (or the call) with record=True.")
        return [Trajectory(tuple(steps)) for steps in self._records]

    @without_autocast()
    def advance(self, x: Tensor, prediction: Tensor, features: Features | None) -> Tensor:
        """Moves every active image to its next time.

        Args:
            x: latents, B rows of any shape.
            prediction: the denoiser's (guided) velocity at ``t_B``, same shape; finished rows are ignored.
            features: of the ACTIVE rows only, in order; None where the policy reads none.

        Returns:
            The next latents, B rows; rows of finished images are unchanged.

        Raises:
            TpdmError: shapes do not fit, all images are finished, or a number is NaN (says where).
        """
        rows = self.active_rows
        check_shapes(x, prediction, features, len(self._times), len(rows))
        row_n = torch.tensor(rows, dtype=torch.int64, device=self.t_B.device)
        t_n, index_n = self.t_B[row_n], self.index_B[row_n]
        observation = self._observe(prediction, features, t_n, index_n, row_n)
        if self._records is not None:
            # A recorded decision is taken from what replay keeps, so that its ratio is 1 before the first update.
            # Others are taken in fp32: fp16 would turn the rounding of a batch (1e-6) into steps of 1e-3.
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
        """Applies the stop rule and the cap to the active rows, after checking that nothing is NaN."""
        finite_n, seen_n = finite_rows(prediction, features, rows)
        values = [decision.action_B, decision.logp_B, decision.t_next_B, finite_n, seen_n]
        # One copy to the host per step: the loop has to know who is finished anyway.
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
                self._records[b].append(Step(observation.rows(slice(i, i + 1)), action, logp, t, t_next, not capped))
            self._times[b].append(t_next)
