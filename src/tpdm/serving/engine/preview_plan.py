"""Which steps of an image are shown, where so many previews were asked for and nobody knows the number of steps."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Landed(Protocol):
    """A step of an image."""

    @property
    def t(self) -> float:
        """Where it landed; 0 at the end."""


Step = TypeVar("Step", bound=Landed)


class PreviewPlan(Generic[Step]):
    """Chooses the steps of one image.

    N previews are due at the times N/(N+1), ..., 1/(N+1): the first step that lands there or below is shown. A step is
    shown once, so that what a long step leaves due goes to the next. What is due still when the image ends goes to its
    latest steps that were not shown. So there are N previews of every image that takes N steps.

    Args:
        number: N, at least 1.
    """

    def __init__(self, number: int) -> None:
        self._number, self._shown = number, 0
        self._left: deque[Step] = deque(maxlen=number)  # the latest that were not shown

    def shown_at(self, step: Step) -> list[Step]:
        """The steps to show when ``step`` has landed, in their order: itself, none, or at the end earlier ones too."""
        if step.t > 0:
            due = sum(step.t * (self._number + 1) <= k for k in range(1, self._number + 1)) - self._shown
            chosen = [step] if due > 0 else []
        else:
            due = self._number - self._shown
            chosen = [*self._left, step][-due:] if due > 0 else []
        if not chosen:
            self._left.append(step)
        self._shown += len(chosen)
        return chosen
