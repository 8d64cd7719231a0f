"""Types that all packages share: features, observations, decisions, policies and trajectories.

Axes, as suffixes of tensor names:
    B images of a batch, P prompts, K images per prompt, T decisions, C H W latent or feature map, N tokens,
    D width of the denoiser, E width of its time embedding.

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
    """Features of one evaluation of the denoiser, one row per image, in their true 2-D layout.

    Attributes:
        first_BDHW: Tokens that enter the first block, (B, D, H, W).
        last_BDHW: Tokens that leave the last block, before the output projection, (B, D, H, W).
        temb_BE: Time (and pooled text) embedding, (B, E).
    """

    first_BDHW: Tensor
    last_BDHW: Tensor
    temb_BE: Tensor


@dataclass(frozen=True)
class Observation:
    """What a policy reads about B images before it decides.

    Attributes:
        map_BCHW: Pooled features (B, 2D, S, S), fp32, or the storage dtype in a recorded step. None if the policy reads
            no features.
        temb_BE: Time embedding (B, E), in the same dtype. None if the policy reads no features.
        t_B: Current times, fp32.
        index_B: Number of decisions made before, int64.
        row_B: Rows of the images in the pipeline call, int64.
        gamma_B: Gamma of each image, fp32. None for policies that are not gamma-conditioned.
        change_B: Speed at which the prediction changes along the path, fp32. None for policies that do not read it.
    """

    map_BCHW: Tensor | None
    temb_BE: Tensor | None
    t_B: Tensor
    index_B: Tensor
    row_B: Tensor
    gamma_B: Tensor | None = None
    change_B: Tensor | None = None

    def rows(self, rows: Tensor | slice) -> Observation:
        """Return some of the rows.

        Args:
            rows: Slice, row numbers (int64), or mask (bool).
        """
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
    """The next times of B images.

    Attributes:
        t_next_B: Next times r t, fp32. The stepper may still lower them (stop threshold, cap).
        action_B: Actions r = t_next / t, fp32, in (0, 1) as sampled.
        logp_B: Log-probabilities of the actions in nats, fp32. 0 for deterministic policies.
    """

    t_next_B: Tensor
    action_B: Tensor
    logp_B: Tensor


class Policy(Protocol):
    """Decides the next time of every image. The stepper treats fixed and learned schedules the same.

    Subclasses need ``observe`` and ``propose``. The other defaults suit a policy that reads no features.

    Example:
        >>> import torch
        >>> class Halving(Policy):
        ...     def observe(self, features, t_B, index_B, row_B, change_B=None):
        ...         return Observation(None, None, t_B, index_B, row_B)
        ...     def propose(self, observation, seeds):
        ...         half_B = torch.full_like(observation.t_B, 0.5)
        ...         return Decision(half_B * observation.t_B, half_B, torch.zeros_like(half_B))
        >>> row_B = torch.arange(2)
        >>> policy = Halving()
        >>> policy.propose(policy.observe(None, torch.tensor([1.0, 0.5]), row_B, row_B), None).t_next_B
        tensor([0.5000, 0.2500])
    """

    @property
    def reads_features(self) -> bool:
        """Whether ``observe`` needs the denoiser's features. If not, no hooks are set. Default: False."""
        return False

    @property
    def reads_change(self) -> bool:
        """Whether ``observe`` needs the speed at which the prediction changes. Default: False."""
        return False

    @property
    def fixed_steps(self) -> int | None:
        """Number of steps of a schedule without stop threshold or cap. None (default) means that steps are decided."""
        return None

    def initial_times(self, images: int) -> Tensor | None:
        """Return the time of each image at the start.

        Args:
            images: Number of images B of the call.

        Returns:
            Times, fp32 (B,). None (default) starts where the call does: at 1.0, or at the strength.

        Raises:
            ConfigError: The policy has schedules for another number of images.
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
        """Reduce features to what the policy reads.

        Args:
            features: Features of the active images. None if the policy reads none.
            t_B: Current times, fp32.
            index_B: Number of decisions made before, int64.
            row_B: Rows of the images in the pipeline call, int64.
            change_B: Change of the prediction since the last evaluation, root mean square per unit of t, fp32. None at
                the first evaluation of an image, and if ``reads_change`` is False.
        """
        ...

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """Decide the next times.

        Args:
            observation: Result of :meth:`observe`.
            seeds: One seed per image, to sample. Randomness depends only on the seed and the decision index. None takes
                the mode.
        """
        ...

    def quantize_for_storage(self, observation: Observation) -> Observation:
        """Return the observation as a rollout stores it, in fewer bytes if the policy supports that."""
        return observation


@dataclass(frozen=True)
class Step:
    """One recorded step of one image.

    Attributes:
        batch: What the policy read about all images that were active at this step. Their steps share it.
        row: Row of this image in ``batch``.
        action: Action r in (0, 1), as sampled.
        logp: Log-probability of the action when it was sampled, in nats.
        t: Time before the step.
        t_next: Time after the step, 0 at the end.
        counts: False if the cap overruled the action. The objective leaves such steps out.
    """

    batch: Observation
    row: int
    action: float
    logp: float
    t: float
    t_next: float
    counts: bool

    @property
    def observation(self) -> Observation:
        """Observation of this image only (B = 1), a view of ``batch``."""
        return self.batch.rows(slice(self.row, self.row + 1))


@dataclass(frozen=True)
class Trajectory:
    """All steps of one image. ``len(steps)`` is its number of network evaluations (NFE)."""

    steps: tuple[Step, ...]

    @property
    def times(self) -> list[float]:
        """Times from 1.0 (or the strength) down to 0.0: one more than steps."""
        return [self.steps[0].t, *(s.t_next for s in self.steps)]
