"""Fixed schedules as policies, so that every baseline runs the same path as a learned schedule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tpdm.core.errors import ConfigError
from tpdm.core.types import Decision, Features, Observation, Policy


class FixedSchedule(Policy):
    """One list of times for all images, or one list per image; decides without looking.

    A list is t_0 > t_1 > ... > t_N = 0 with t_0 in (0, 1]: N steps. The stepper never cuts a list: its stop
    threshold is ignored, and a list longer than ``max_steps`` is refused.

    Args:
        times: the list, or a sequence of lists (of any lengths), one per image of the call.

    Raises:
        ConfigError: a list does not start in (0, 1], fall strictly (in fp32), or end at 0.
    """

    def __init__(self, times: Sequence[float] | Sequence[Sequence[float]]) -> None:
        if not times:
            raise ConfigError("got no times, expected at least one list such as [1.0, 0.5, 0.0].")
        nested = [row for row in times if isinstance(row, Sequence)]
        single = [t for t in times if not isinstance(t, Sequence)]
        self._rows = [_checked(row) for row in ([single] if single else nested)]
        # Shorter lists are padded with 0: a finished image stays at 0.
        longest = max(len(row) for row in self._rows)
        padded = [row + [0.0] * (longest - len(row)) for row in self._rows]
        self._table_RT = torch.tensor(padded, dtype=torch.float32, device="cpu")

    @property
    def lists(self) -> list[list[float]]:
        """The lists, one per image, or a single one for all; values as rounded to fp32."""
        return [row[:] for row in self._rows]

    @property
    def steps(self) -> int:
        """Number of steps of the longest list."""
        return self._table_RT.shape[1] - 1

    @property
    def fixed_steps(self) -> int:
        """As ``steps``: a list is never cut."""
        return self.steps

    def initial_times(self, images: int) -> Tensor:
        """t_0 of each of ``images`` images, fp32 (B,).

        Raises:
            ConfigError: there is one list per image, but for another number of images.
        """
        if len(self._rows) not in (1, images):
            raise ConfigError(
                f"got {len(self._rows)} lists of times for {images} images, expected one list for all or one "
                "per image: match the lists to prompts x images per prompt."
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
        """Keeps the clock only; the features are not read."""
        return Observation(map_BCHW=None, temb_BE=None, t_B=t_B, index_B=index_B, row_B=row_B)

    def propose(self, observation: Observation, seeds: Sequence[int] | None) -> Decision:
        """The next entry of each image's list; the action is the ratio of the two times, its log-prob 0."""
        table_RT = self._table_RT.to(observation.t_B.device)
        row_B = observation.row_B if len(self._rows) > 1 else torch.zeros_like(observation.row_B)
        t_next_B = table_RT[row_B, (observation.index_B + 1).clamp(max=self.steps)]
        return Decision(t_next_B=t_next_B, action_B=t_next_B / observation.t_B, logp_B=torch.zeros_like(t_next_B))


def _checked(times: Sequence[float]) -> list[float]:
    """The list as fp32 values, or a ConfigError that says which rule it breaks."""
    row: list[float] = torch.tensor([float(t) for t in times], dtype=torch.float32, device="cpu").tolist()
    if len(row) < 2 or not 0.0 < row[0] <= 1.0:
        raise ConfigError(
            f"got times {list(times)}, expected at least two with the first in (0, 1]: start at 1.0 (noise)."
        )
    if row[-1] != 0.0:
        raise ConfigError(f"got times that end at {row[-1]:g}, expected 0.0: append 0.0, the finished image.")
    for i, (t, t_next) in enumerate(pairwise(row)):
        if not t_next < t:
            raise ConfigError(
                f"got times[{i + 1}] = {t_next:g} after {t:g}, expected strictly decreasing times: "
                "sort the list and drop repetitions."
            )
    return row
