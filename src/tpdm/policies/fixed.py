"""Fixed schedules as policies, so that baselines run the same code as learned schedules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError
from tpdm.core.types import Decision, Features, Observation, Policy


class FixedSchedule(Policy):
    """Runs one list of times for all images, or one list per image.

    A list is t_0 > t_1 > ... > t_N = 0 with t_0 in (0, 1], which makes N steps. The stepper never cuts a list. It
    ignores the stop threshold, and a list longer than ``max_steps`` is an error.

    Args:
        times: One list of times, or one list per image of the call. Lists may differ in length.

    Raises:
        ConfigError: A list does not start in (0, 1], does not fall strictly (in fp32), or does not end at 0.

    Example:
        >>> schedule = FixedSchedule([1.0, 0.75, 0.5, 0.0])
        >>> schedule.steps, schedule.lists
        (3, [[1.0, 0.75, 0.5, 0.0]])
    """

    def __init__(self, times: Sequence[float] | Sequence[Sequence[float]]) -> None:
        if not times:
            raise ConfigError("times is empty. It must be a list of times, or one list per image. Try [1.0, 0.5, 0.0].")
        nested = [row for row in times if isinstance(row, Sequence)]
        single = [t for t in times if not isinstance(t, Sequence)]
        self._rows = [_checked(row) for row in ([single] if single else nested)]
        # Shorter lists are padded with 0: a finished image stays at 0.
        longest = max(len(row) for row in self._rows)
        padded = [row + [0.0] * (longest - len(row)) for row in self._rows]
        self._table_RT = torch.tensor(padded, dtype=torch.float32, device="cpu")

    @property
    def lists(self) -> list[list[float]]:
        """One list for all images, or one list per image, as rounded to fp32."""
        return [row[:] for row in self._rows]

    @property
    def steps(self) -> int:
        """Number of steps of the longest list."""
        return self._table_RT.shape[1] - 1

    @property
    def fixed_steps(self) -> int:
        """Number of steps of the longest list. A list is never cut."""
        return self.steps

    def initial_times(self, images: int) -> Tensor:
        """Return t_0 of each image, fp32 (B,).

        Args:
            images: Number of images B of the call.

        Raises:
            ConfigError: There is one list per image, for another number of images.
        """
        if len(self._rows) not in (1, images):
            raise ConfigError(
                f"There are {len(self._rows)} lists of times for {images} images. There must be one list for all, or "
                "one per image. The number of images is prompts x images per prompt."
            )
        return self._table_RT[:, 0].expand(images).clone()

    def observe(
        self,
        features: Features | None,
        t_B: Tensor,
        index_B: Tensor,
        row_B: Tensor,
        change_B: Tensor | None = None,
    ) -> Observation:
        """Keep times, indices and rows. Features are not read. See :meth:`tpdm.core.types.Policy.observe`."""
        return Observation(map_BCHW=None, temb_BE=None, t_B=t_B, index_B=index_B, row_B=row_B)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """Return the next time of each image's list. The action is t_next / t, with log-probability 0."""
        table_RT = self._table_RT.to(observation.t_B.device)
        row_B = observation.row_B if len(self._rows) > 1 else torch.zeros_like(observation.row_B)
        t_next_B = table_RT[row_B, (observation.index_B + 1).clamp(max=self.steps)]
        return Decision(t_next_B=t_next_B, action_B=t_next_B / observation.t_B, logp_B=torch.zeros_like(t_next_B))


def _checked(times: Sequence[float]) -> list[float]:
    """Return the list as fp32 values, or raise a ConfigError."""
    row: list[float] = torch.tensor([float(t) for t in times], dtype=torch.float32, device="cpu").tolist()
    if len(row) < 2 or not 0.0 < row[0] <= 1.0:
        raise ConfigError(
            f"times is {list(times)}. It must have at least two times, and the first must be in (0, 1]. Start at 1.0, "
            "which is noise."
        )
    if row[-1] != 0.0:
        raise ConfigError(f"times ends at {row[-1]:g}. It must end at 0.0, which is the finished image. Append 0.0.")
    for i, (t, t_next) in enumerate(pairwise(row)):
        if not t_next < t:
            raise ConfigError(
                f"times[{i + 1}] is {t_next:g} after {t:g}. Times must fall strictly. Sort them and drop repetitions."
            )
    return row
