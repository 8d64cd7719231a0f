"""The words that every room shares: the legend of axes, the data that flows, the error tree.

Axes, as suffixes of tensor names:
    B images in flight, P prompts, K images per prompt, T decisions, C H W latent or feature map, N tokens,
    D channels of the denoiser, E width of its time embedding.

Times t are in [0, 1], t = 1 is noise and t = 0 the image (SD3 and FLUX call it sigma). Times, actions and
log-probabilities are always fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What the denoiser computed in one evaluation, conditional rows only, in its true 2-D layout.

    Attributes:
        first_BDHW: tokens entering the first block, (B, D, H, W).
        last_BDHW: tokens leaving the last block, before the output projection, (B, D, H, W).
        temb_BE: time (and pooled text) embedding, (B, E).
    """

    first_BDHW: Tensor
    last_BDHW: Tensor
    temb_BE: Tensor


@dataclass(frozen=True)
class Observation:
    """What a policy sees of B images before it decides.

    Attributes:
        map_BCHW: pooled features (B, 2D, S, S), fp32, or the storage dtype where a step is recorded; None where the
            policy reads none.
        temb_BE: time embedding, likewise.
        t_B: current time, fp32.
        index_B: number of decisions made so far, int64.
        row_B: position of the image in the pipeline call, int64.
        gamma_B: price of a step that the image is made for, fp32; None for policies without a dial.
        change_B: how fast the prediction changes along the path, fp32; None for policies that do not steer by it.
    """

    map_BCHW: Tensor | None
    temb_BE: Tensor | None
    t_B: Tensor
    index_B: Tensor
    row_B: Tensor
    gamma_B: Tensor | None = None
    change_B: Tensor | None = None

    def rows(self, rows: Tensor | slice) -> Observation:
        """Some of the rows, by position or mask."""
        return Observation(
            map_BCHW=None if self.map_BCHW is None else self.map_BCHW[rows],
            temb_BE=None if self.temb_BE is None else self.temb_BE[rows],
            t_B=self.t_B[rows],
            index_B=self.index_B[rows],
            row_B=self.row_B[rows],
            gamma_B=None if self.gamma_B is None else self.gamma_B[rows],
            change_B=None if self.change_B is None else self.change_B[rows],
        )


@dataclass(frozen=True)
class Decision:
    """The next time of B images.

    Attributes:
        t_next_B: r * t, fp32; the stepper may still replace it by 0 (stop threshold, cap).
        action_B: r in (0, 1), fp32, as sampled.
        logp_B: log-probability of the action, fp32; 0 for deterministic policies.
    """

    t_next_B: Tensor
    action_B: Tensor
    logp_B: Tensor


class Policy(Protocol):
    """Chooses the next time of every image. Fixed schedules and learned ones are the same to the stepper.

    Subclass it: a policy that looks at nothing, decides every step and begins anywhere needs ``observe`` and
    ``propose`` alone.
    """

    @property
    def reads_features(self) -> bool:
        """Whether ``observe`` needs the denoiser's features (no hooks are set otherwise)."""
        return False

    @property
    def reads_change(self) -> bool:
        """Whether ``observe`` is given how fast the prediction changes, as classical step-size control is."""
        return False

    @property
    def fixed_steps(self) -> int | None:
        """Number of steps of a schedule that is run as it stands, without stop threshold or cap; None decides."""
        return None

    def initial_times(self, images: int) -> Tensor | None:
        """Time of each image at the start, fp32 (B,); None begins where the call does (1.0, or the strength).

        Args:
            images: B of the call.

        Raises:
            ConfigError: the policy has schedules for another number of images.
        """
        return None

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        """Reduces features to what the policy reads.

        Args:
            features: of the active rows; None where the policy reads none.
            t_B: current time, fp32.
            index_B: decisions made so far, int64.
            row_B: position in the pipeline call, int64.
            change_B: change of the prediction since the last evaluation, root mean square per unit of t, fp32; None
                at the first evaluation of a chain, and where ``reads_change`` is false.
        """
        ...

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """Decides; one seed per image samples (randomness depends on seed and decision index), None takes the mode."""
        ...

    def quantize_for_storage(self, observation: Observation) -> Observation:
        """The observation as a rollout keeps it: in fewer bytes than it is read in, if the policy wants that."""
        return observation


@dataclass(frozen=True)
class Step:
    """One recorded step of one image: what was seen, what was decided, where it landed.

    Attributes:
        observation: of this image alone (B = 1).
        action: r in (0, 1) as sampled.
        logp: its log-probability when it was sampled.
        t: time before.
        t_next: time after (0 at the end).
        counts: False where the cap overruled the action, so that the objective leaves it out.
    """

    observation: Observation
    action: float
    logp: float
    t: float
    t_next: float
    counts: bool


@dataclass(frozen=True)
class Trajectory:
    """All steps of one image; ``len(steps)`` is its number of network evaluations (NFE)."""

    steps: tuple[Step, ...]

    @property
    def times(self) -> list[float]:
        """t_0 = 1.0 (or the strength) down to 0.0: one more entry than steps."""
        return [self.steps[0].t, *(s.t_next for s in self.steps)]
